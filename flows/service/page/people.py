"""People: a grid, one person, proposals side by side; and the decisions of whoever looks."""

import re
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request, Response

from flows.service import paging
from flows.service.access import Here, check_role
from flows.service.api.identities import decide, person_out
from flows.service.api.images import Cursor
from flows.service.dto import Id
from flows.service.faces import face_out
from flows.service.page.render import Form, Submitted, Visitor, go, page
from flows.service.problems import LARGEST_ID, Problem, not_found
from flows.service.state import Service
from infra.catalog.queries import portraits, views
from infra.catalog.service.tokens import Role
from tasks.identities import decisions
from tasks.identities.decisions import DecisionView

router = APIRouter(include_in_schema=False)
CARDS, FACES, PROPOSALS, HISTORY = 60, 120, 20, 12
Decided = Annotated[int | None, Query(ge=1, le=LARGEST_ID)]
PersonId = Annotated[Id, Path()]
NUMBERED = re.compile(r"(?:Person |number |.*\(number )?(?P<number>[0-9]{1,18})\)?")
WORDS = {
    "name": "named",
    "confirm": "confirmed",
    "reject": "said: somebody else",
    "merge": "merged",
    "split": "split off",
    "decline": "said: different people",
    "ignore": "left out",
}


@router.get("/people")
def every(
    request: Request,
    service: Here,
    who: Visitor,
    text: Annotated[str | None, Query(max_length=200)] = None,
    named: bool | None = None,
    min_faces: Annotated[int, Query(ge=1, le=1_000_000)] = 2,
    after: Cursor = None,
    decided: Decided = None,
) -> Response:
    """People by the number of their faces."""
    place = paging.place(after, 2)
    with service.catalog.read() as session:
        found = portraits.people(session, min_faces, named, text or None, place, CARDS + 1)
        waiting = decisions.waiting(session, PROPOSALS)
    query: dict[str, object] = {"text": text, "named": named, "min_faces": min_faces if min_faces != 2 else None}
    more = None
    if len(found) > CARDS:
        last = found[CARDS - 1]
        more = _people({**query, "after": paging.cursor([last.faces, last.identity_id])})
    return page(
        request,
        who,
        "people.html",
        people=[person_out(view) for view in found[:CARDS]],
        more=more,
        after=after,
        start=_people(query),
        text=text or "",
        named=named,
        min_faces=min_faces,
        waiting=waiting,
        most=PROPOSALS,
        decided=_decision(service, decided),
        words=WORDS,
    )


@router.get("/people/proposals")
def proposals(request: Request, service: Here, who: Visitor, decided: Decided = None) -> Response:
    """Pairs that may be one person, with the faces that speak for it."""
    with service.catalog.read() as session:
        found = decisions.proposals(session, PROPOSALS)
    return page(request, who, "proposals.html", proposals=found, decided=_decision(service, decided), words=WORDS)


@router.post("/people/proposals")
def answer(service: Here, form: Form) -> Response:
    """Same person, or different people."""
    a, b, who = form.number("a"), form.number("b"), _curator(form)
    answers = {"same": decisions.accept, "different": decisions.decline}
    chosen = answers.get(form.text("answer"))
    if chosen is None:
        raise Problem(422, "form", "The form does not fit", "answer is 'same' or 'different'.")
    done = decide(service, lambda session: chosen(session, who, a, b))
    return go(f"/people/proposals?decided={done.decision_id}")


@router.get("/people/{identity_id}")
def one(
    request: Request,
    service: Here,
    who: Visitor,
    identity_id: PersonId,
    after: Cursor = None,
    decided: Decided = None,
) -> Response:
    """One person with their faces and what was decided about them."""
    place = paging.place(after)
    with service.catalog.read() as session:
        view = portraits.person(session, identity_id)
        if view is None:
            raise not_found(f"Person {identity_id}")
        if view.identity_id != identity_id:  # merged into another since
            return go(f"/people/{view.identity_id}" + (f"?decided={decided}" if decided else ""))
        found = views.faces(session, None, identity_id, 0.0, FACES + 1, 0 if place is None else place[0])
        history = decisions.history(session, HISTORY, identity_id)
        others = [other for other in portraits.people(session, 1, True, None, None, 500) if other.name]
    more = f"/people/{identity_id}?after={paging.cursor([found[FACES - 1].face_id])}" if len(found) > FACES else None
    return page(
        request,
        who,
        "person.html",
        person=person_out(view),
        faces=[face_out(face) for face in found[:FACES]],
        more=more,
        after=after,
        history=history,
        others=[other for other in others if other.identity_id != identity_id],
        decided=_decision(service, decided),
        words=WORDS,
    )


@router.post("/people/{identity_id}/name")
def name(service: Here, form: Form, identity_id: PersonId) -> Response:
    """Call a person something."""
    who = _curator(form)
    done = decide(service, lambda session: decisions.name(session, who, identity_id, form.text("name")))
    return go(f"/people/{identity_id}?decided={done.decision_id}")


@router.post("/people/{identity_id}/faces")
def faces(service: Here, form: Form, identity_id: PersonId) -> Response:
    """What is said about the chosen faces: this person, not this person, somebody else together."""
    who, chosen, action = _curator(form), form.numbers("face"), form.text("action")
    if action == "confirm":
        done = decide(service, lambda session: decisions.confirm(session, who, chosen, identity_id))
    elif action == "reject":
        done = decide(service, lambda session: decisions.reject(session, who, chosen, identity_id))
    elif action == "split":
        done = decide(service, lambda session: decisions.split(session, who, chosen))
    else:
        raise Problem(422, "form", "The form does not fit", "action is 'confirm', 'reject' or 'split'.")
    with service.catalog.read() as session:
        there = portraits.person(session, identity_id)
    left = f"/people/{identity_id}" if there is not None and there.faces else "/people"
    return go(f"{left}?decided={done.decision_id}")


@router.post("/people/{identity_id}/merge")
def merge(service: Here, form: Form, identity_id: PersonId) -> Response:
    """Another identity is the same person: by a name that only one has, or by its number."""
    who, other = _curator(form), _person_meant(service, identity_id, form.text("other"))
    done = decide(service, lambda session: decisions.merge(session, who, identity_id, other))
    return go(f"/people/{identity_id}?decided={done.decision_id}")


@router.post("/people/{identity_id}/ignore")
def ignore(service: Here, form: Form, identity_id: PersonId) -> Response:
    """Leave a person out of lists and proposals."""
    who = _curator(form)
    done = decide(service, lambda session: decisions.ignore_identity(session, who, identity_id))
    return go(f"/people?decided={done.decision_id}")


@router.post("/decisions/{decision_id}/undo")
def undo(service: Here, form: Form, decision_id: PersonId) -> Response:
    """Take a decision back."""
    who = _curator(form)
    done = decide(service, lambda session: decisions.undo(session, who, decision_id))
    if form.text("back") == "proposals":
        return go("/people/proposals")
    with service.catalog.read() as session:
        there = None if done.identity_id is None else portraits.person(session, done.identity_id)
    return go("/people" if there is None else f"/people/{there.identity_id}")


def _people(query: dict[str, object]) -> str:
    """The address of the people who fit."""
    fields = urlencode({name: value for name, value in query.items() if value is not None})
    return f"/people?{fields}" if fields else "/people"


def _curator(form: Submitted) -> str:
    check_role(form.who, Role.CURATE)
    return form.who.name


def _decision(service: Service, decision_id: int | None) -> DecisionView | None:
    """The decision that was just made, unless it was undone since."""
    if decision_id is None:
        return None
    with service.catalog.read() as session:
        lately = decisions.history(session, HISTORY)
    return next((d for d in lately if d.decision_id == decision_id and d.undone_at is None), None)


def _person_meant(service: Service, beside: int, text: str) -> int:
    """The person that a name, a number, or a suggestion of ours with both means.

    Raises:
        Problem: 422 if it is nobody, or if it may be several.
    """
    written = NUMBERED.fullmatch(text)
    number = int(written["number"]) if written else None
    with service.catalog.read() as session:
        meant = portraits.known_as(session, beside, text, number)
    if len(meant) == 1:
        return meant[0].id
    called = ", ".join(f"{person.name or 'Person'} (number {person.id})" for person in meant)
    why = f"{text!r} may be {called}. Choose one of the list" if meant else f"{text!r} is nobody's name or number here"
    raise Problem(422, "person", "Who is meant?", f"{why}, or write 'number' and the number that stands on their page.")
