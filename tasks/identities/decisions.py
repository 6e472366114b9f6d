"""What people decide about faces: name, confirm, reject, merge, split, decline, ignore, and undo.

Every decision is a row with who and when, holds under every embedding version, now and later, and is never overridden by a
run. A later decision may say otherwise; then it counts. Undoing goes back from the latest one about the same person. All
functions work in the caller's writing transaction and add to the audit log.

A person is meant by an identity, as the catalog shows it ('visage identities'), or by one that was merged into it; faces by
their ids.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from infra.catalog.custody import audit
from infra.catalog.identities import decisions as stored
from infra.catalog.identities import enforcement, people
from infra.catalog.identities.decisions import DecisionError, DecisionView, UnknownSubject
from infra.catalog.statements import exclusive
from infra.catalog.tables.people import Decision, DecisionKind, Person, Says
from infra.catalog.tables.schema import Identity
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.versioning.versions import serving
from tasks.calibration import Calibration, calibration_of
from tasks.identities.agglomeration import EVIDENCE

__all__ = [
    "Decided",
    "DecisionError",
    "DecisionView",
    "Evidence",
    "Proposal",
    "UnknownSubject",
    "accept",
    "confirm",
    "decline",
    "history",
    "ignore",
    "ignore_identity",
    "merge",
    "name",
    "proposals",
    "reject",
    "split",
    "undo",
    "waiting",
]

MAX_NAME = 200  # characters
AUDITED_FACES = 100  # ids of faces written to the audit log per decision


@dataclass(frozen=True)
class Decided:
    """A decision that was written down; `identity_id`: the person it is about, as an identity (of a split: the new one)."""

    decision_id: int
    kind: str
    identity_id: int | None
    faces: int


@dataclass(frozen=True)
class Evidence:
    """A pair of faces of two identities: how similar, and how probably one person at even odds beforehand."""

    face_a: int
    face_b: int
    similarity: float
    probability: float | None


@dataclass(frozen=True)
class Proposal:
    """Two identities that may be one person, with the nearest pairs of the faces that stand for them.

    `similarity`: of the pair of faces for which a night proposed it.
    """

    identity_a: int
    name_a: str | None
    faces_a: int
    identity_b: int
    name_b: str | None
    faces_b: int
    similarity: float
    evidence: tuple[Evidence, ...]


def name(session: Session, who: str, identity_id: int, name: str) -> Decided:
    """Call a person something. The name stays through merges, model upgrades and later runs.

    Raises:
        UnknownSubject: if there is no such identity.
        DecisionError: for an empty, unprintable or overlong name.
    """
    name = " ".join(name.split())
    if not name or not name.isprintable() or len(name) > MAX_NAME:
        raise DecisionError(f"{name[:50]!r} is no name: it must be 1 to {MAX_NAME} printable characters")
    identity, person = _person(session, identity_id)
    decision = stored.enter(session, DecisionKind.NAME, who, person, name=name)
    return _carry_out(session, decision, [person], identity.id, [])


def confirm(session: Session, who: str, face_ids: Collection[int], identity_id: int | None = None) -> Decided:
    """Say that faces are a person: they move there, and stay. Without an identity: the one they are in now.

    Raises:
        UnknownSubject: if there is no such face or identity.
        DecisionError: if no identity is given and the faces are not all in one.
    """
    return _say(session, who, DecisionKind.CONFIRM, Says.IS, face_ids, identity_id)


def reject(session: Session, who: str, face_ids: Collection[int], identity_id: int | None = None) -> Decided:
    """Say that faces are not a person: they leave, never return there, and are grouped anew by the next run.

    Raises:
        UnknownSubject: if there is no such face or identity.
        DecisionError: if no identity is given and the faces are not all in one.
    """
    return _say(session, who, DecisionKind.REJECT, Says.IS_NOT, face_ids, identity_id)


def merge(session: Session, who: str, kept_id: int, absorbed_id: int) -> Decided:
    """Say that two identities are one person; all their faces stay together from now on. The first one's id and name remain.

    Raises:
        UnknownSubject: if there is no such identity.
        DecisionError: if they cannot be one: the same one twice, different model versions, or a face that was confirmed as
            one and rejected from the other.
    """
    kept, absorbed = _two(session, kept_id, absorbed_id)
    theirs = [stored.person_of(session, kept), stored.person_of(session, absorbed)]
    decision = stored.enter(session, DecisionKind.MERGE, who, theirs[0], theirs[1])
    stored.end(session, stored.holding_apart(session, theirs[0].id, theirs[1].id), decision)
    persons = [p for person in theirs for p in stored.family(session, person.id)]
    if contradictions := stored.contradictions(session, persons):
        face, rejection = contradictions[0]
        raise DecisionError(
            f"identities {kept.id} and {absorbed.id} cannot be one person: decision {rejection} says that face {face}, "
            f"confirmed as one of them, is not the other. Undo it first ('visage people undo {rejection}')"
        )
    rejected = stored.denied(session, persons)
    faces = [stored.members(session, kept.id), stored.members(session, absorbed.id)]
    stored.unite(session, theirs[0], theirs[1])
    for person, of_one in zip(theirs, faces, strict=True):
        stored.say(session, decision, set(of_one) - rejected, Says.IS, person)
    return _carry_out(session, decision, theirs[:1], kept.id, [*faces[0], *faces[1]])


def split(session: Session, who: str, face_ids: Collection[int]) -> Decided:
    """Say that some faces of an identity are somebody else: they become an identity of their own, and the two stay apart.

    Raises:
        UnknownSubject: if there is no such face.
        DecisionError: if the faces are not all in one identity, or are all of it.
    """
    stored.check_faces(session, face_ids)
    identity_id = _common_identity(session, face_ids)
    rest = set(stored.members(session, identity_id)) - set(face_ids)
    if not rest:
        raise DecisionError(f"these are all faces of identity {identity_id}: a split must leave some")
    identity, person = _person(session, identity_id)
    other = stored.new_person(session)
    decision = stored.enter(session, DecisionKind.SPLIT, who, person, other)
    stored.say(session, decision, face_ids, Says.IS, other)
    stored.say(session, decision, rest, Says.IS_NOT, other)
    _carry_out(session, decision, [other, person], identity_id, face_ids)
    place = stored.places(session, face_ids, identity.model_version_id)[min(face_ids)]
    return Decided(decision.id, decision.kind, place, len(face_ids))


def decline(session: Session, who: str, identity_a: int, identity_b: int) -> Decided:
    """Say that two identities are different people: they are never merged, nor proposed again. Said again, it stays said once.

    Raises:
        UnknownSubject: if there is no such identity.
        DecisionError: if they are the same one, or of different model versions.
    """
    both = _two(session, identity_a, identity_b)
    theirs = [stored.person_of(session, identity) for identity in both]
    for said in stored.holding_apart(session, theirs[0].id, theirs[1].id):
        if said.kind == DecisionKind.DECLINE:
            return Decided(said.id, said.kind, both[0].id, 0)
    decision = stored.enter(session, DecisionKind.DECLINE, who, theirs[0], theirs[1])
    return _carry_out(session, decision, theirs, both[0].id, [])


def accept(session: Session, who: str, identity_a: int, identity_b: int) -> Decided:
    """Accept a proposed merge: as `merge`, keeping the named one, else the one of more faces.

    Raises:
        UnknownSubject, DecisionError: as `merge`; also if there is no such proposal.
    """
    pair = {identity_a, identity_b}
    if not any({a, b} == pair for a, b in people.proposed(session)):
        raise UnknownSubject(
            f"no merge of identities {identity_a} and {identity_b} is proposed; 'visage people proposals' lists those that "
            "are, and 'visage people merge' merges any two"
        )
    found = [stored.identity(session, i) for i in sorted(pair)]
    kept, absorbed = sorted(found, key=lambda i: (i.name is None, -len(stored.members(session, i.id)), i.id))
    return merge(session, who, kept.id, absorbed.id)


def ignore(session: Session, who: str, face_ids: Collection[int]) -> Decided:
    """Leave faces out of all identities, for good: a statue, a poster, a stranger.

    Raises:
        UnknownSubject: if there is no such face.
    """
    exclusive(session, enforcement.PEOPLE)
    stored.check_faces(session, face_ids)
    decision = stored.enter(session, DecisionKind.IGNORE, who, None)
    stored.say(session, decision, face_ids, Says.IGNORED)
    enforcement.ignore_everywhere(session, face_ids, decision.id)
    return _carry_out(session, decision, [], None, face_ids)


def ignore_identity(session: Session, who: str, identity_id: int) -> Decided:
    """Leave a person out of lists and proposals, with all faces that will join them.

    Raises:
        UnknownSubject: if there is no such identity.
    """
    identity, person = _person(session, identity_id)
    decision = stored.enter(session, DecisionKind.IGNORE, who, person)
    return _carry_out(session, decision, [person], identity.id, [])


def undo(session: Session, who: str, decision_id: int) -> Decided:
    """Take a decision back: what it ended is in force again, and faces that it moved return.

    Raises:
        UnknownSubject: if there is no such decision.
        DecisionError: if it is undone already, or later decisions about the same people or faces rest on it.
    """
    exclusive(session, enforcement.PEOPLE)
    decision = session.get(Decision, decision_id)
    if decision is None:
        raise UnknownSubject(f"there is no decision {decision_id}; 'visage people history' lists them")
    if decision.undone_at is not None:
        raise DecisionError(f"decision {decision_id} was undone already, by {decision.undone_by}")
    if later := stored.resting_on(session, decision):
        raise DecisionError(
            f"decision {decision_id} cannot be undone before those that came after it about the same people or faces: "
            f"undo {', '.join(map(str, later))} first, in this order"
        )
    moves = stored.former_places(session, decision_id)
    confirmed, ignored = (stored.spoken_of(session, decision_id, says) for says in (Says.IS, Says.IGNORED))
    roots = stored.withdraw(session, decision, who)
    for root in roots:
        stored.describe(session, root)
    enforcement.heed(session, ignored)
    enforcement.move_back(session, moves)
    enforcement.let_go(session, confirmed, decision.decided_at)
    enforcement.obey(session, roots)
    shown = stored.history(session, 1)  # before persons without a decision are forgotten
    stored.forget_persons(session, roots)
    audit.append(session, who, "decide.undo", {"decision": decision_id, "kind": decision.kind})
    return Decided(decision_id, decision.kind, shown[0].identity_id if shown else None, len(moves))


def proposals(session: Session, limit: int = 50, after: tuple[float, int, int] | None = None) -> list[Proposal]:
    """Merges for a person to decide, most similar first, with the nearest pairs of faces as evidence.

    Those answered, of people to be ignored, or overtaken by other decisions are left out. `after`: similarity and identities of
    the last one before.
    """
    version = serving(session)
    if version is None:
        return []
    calibration = calibration_of(version)
    return [
        Proposal(
            row.a.id,
            row.a.name,
            row.faces_a,
            row.b.id,
            row.b.name,
            row.faces_b,
            row.similarity,
            _evidence(session, version, row.a.id, row.b.id, calibration),
        )
        for row in _open(session, version, limit, after)
    ]


def waiting(session: Session, most: int) -> int:
    """How many merges there are for a person to decide, counted up to `most`; of embeddings nothing is read."""
    version = serving(session)
    return 0 if version is None else len(_open(session, version, most))


def history(
    session: Session, limit: int = 50, identity_id: int | None = None, before: int | None = None
) -> list[DecisionView]:
    """Decisions, the latest first; of one person, by an identity of theirs; those before a decision's id.

    Raises:
        UnknownSubject: if there is no such identity.
    """
    return stored.history(session, limit, identity_id, before)


def _open(
    session: Session, version: ModelVersionRow, limit: int, after: tuple[float, int, int] | None = None
) -> list[people.OpenProposal]:
    found: list[people.OpenProposal] = []
    while len(found) < limit and (rows := people.open_proposals(session, version.id, limit, after)):
        apart = set(enforcement.kept_apart(session, sorted({i for row in rows for i in (row.a.id, row.b.id)})))
        found += [row for row in rows if (min(row.a.id, row.b.id), max(row.a.id, row.b.id)) not in apart]
        after = rows[-1].similarity, rows[-1].a.id, rows[-1].b.id
    return found[:limit]


def _evidence(
    session: Session, version: ModelVersionRow, a: int, b: int, calibration: Calibration | None
) -> tuple[Evidence, ...]:
    first, second = (people.exemplars_of(session, version.id, version.dimension or 0, [i]) for i in (a, b))
    products = first.embeddings @ second.embeddings.T
    pairs = [np.unravel_index(place, products.shape) for place in np.argsort(-products, axis=None)[:EVIDENCE]]
    return tuple(
        Evidence(
            int(first.ids[i]),
            int(second.ids[j]),
            float(products[i, j]),
            None if calibration is None else float(calibration.probability(float(products[i, j]))),
        )
        for i, j in pairs
    )


def _say(
    session: Session, who: str, kind: DecisionKind, says: Says, face_ids: Collection[int], identity_id: int | None
) -> Decided:
    stored.check_faces(session, face_ids)
    identity_id = identity_id if identity_id is not None else _common_identity(session, face_ids)
    identity, person = _person(session, identity_id)
    decision = stored.enter(session, kind, who, person)
    stored.say(session, decision, face_ids, says, person)
    return _carry_out(session, decision, [person], identity.id, face_ids)


def _person(session: Session, identity_id: int) -> tuple[Identity, Person]:
    exclusive(session, enforcement.PEOPLE)
    identity = stored.identity(session, identity_id)
    return identity, stored.person_of(session, identity)


def _two(session: Session, first_id: int, second_id: int) -> tuple[Identity, Identity]:
    exclusive(session, enforcement.PEOPLE)
    first, second = stored.identity(session, first_id), stored.identity(session, second_id)
    if stored.person_of(session, first) is stored.person_of(session, second):
        raise DecisionError(f"identities {first_id} and {second_id} are one person already; give two different ones")
    if first.model_version_id != second.model_version_id:
        raise DecisionError(f"identities {first_id} and {second_id} are of different model versions; take two of one")
    return first, second


def _common_identity(session: Session, face_ids: Collection[int]) -> int:
    """The identity that all these faces are in, under the version that queries use."""
    exclusive(session, enforcement.PEOPLE)
    version = serving(session)
    places = {} if version is None else stored.places(session, face_ids, version.id)
    found = {places.get(face) for face in face_ids}
    if len(found) != 1 or None in found:
        alone = sorted(set(face_ids) - set(places))
        why = f"faces {', '.join(map(str, alone))} are in none" if alone else f"they are in {sorted(places.values())}"
        raise DecisionError(f"the faces are not all in one identity: {why}. Say which identity is meant")
    return next(iter(places.values()))


def _carry_out(
    session: Session, decision: Decision, persons: Sequence[Person], identity_id: int | None, faces: Collection[int]
) -> Decided:
    """Let names and identities follow, and write it to the audit log, by ids alone."""
    for person in persons:
        stored.describe(session, person.id)
    enforcement.obey(session, [person.id for person in persons], decision.id)
    enforcement.drop_stale_proposals(session)
    subject = {"decision": decision.id, "identity": identity_id, "faces": sorted(faces)[:AUDITED_FACES]}
    audit.append(session, decision.who, f"decide.{decision.kind}", subject)
    return Decided(decision.id, decision.kind, identity_id, len(faces))
