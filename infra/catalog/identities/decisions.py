"""Decisions in the catalog: what people said about faces, in force until undone or ended by a later decision.

A decision is a row of its own. It says things about faces (statements), may name or ignore a person, and may hold two
persons apart. `infra.catalog.identities.enforcement` makes the identities of every embedding version agree with what is
in force.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from infra.catalog.chunks import chunks
from infra.catalog.tables.people import DecidedMove, Decision, DecisionKind, Person, Says, Statement
from infra.catalog.tables.schema import Face, FaceIdentity, Identity, ModelVersion, now

IN_FORCE = Statement.ended_by_id.is_(None)
STANDING = and_(Decision.undone_at.is_(None), Decision.ended_by_id.is_(None))
APART = (DecisionKind.SPLIT.value, DecisionKind.DECLINE.value)


class DecisionError(ValueError):
    """What was decided cannot be: the message says why and what to do."""


class UnknownSubject(LookupError):
    """There is no such face, identity or decision."""


@dataclass(frozen=True)
class DecisionView:
    """A decision in one row; `faces`: those it says something about."""

    decision_id: int
    kind: str
    who: str
    decided_at: datetime
    identity_id: int | None
    other_identity_id: int | None
    name: str | None
    faces: tuple[int, ...]
    undone_at: datetime | None
    undone_by: str | None


def identity(session: Session, identity_id: int) -> Identity:
    """Look an identity up; where people merged it into another one, that other one answers for its id.

    Raises:
        UnknownSubject: if there is none of that id.
    """
    found = session.get(Identity, identity_id)
    if found is None:
        raise UnknownSubject(
            f"there is no identity {identity_id} (merged since, or of no face any more?); 'visage identities' lists them"
        )
    root = select(Person.root_id).where(Person.id == found.person_id, Person.root_id != Person.id).scalar_subquery()
    merged_into = select(Identity).where(
        Identity.person_id == root, Identity.model_version_id == found.model_version_id
    )
    return session.scalar(merged_into) or found


def check_faces(session: Session, face_ids: Collection[int]) -> None:
    """Make sure that there are such faces.

    Raises:
        UnknownSubject: naming those that are not there.
        DecisionError: if none is given.
    """
    if not face_ids:
        raise DecisionError("no face was given; name at least one by its id ('visage faces' lists them)")
    there: set[int] = set()
    for part in chunks(face_ids):
        there.update(session.scalars(select(Face.id).where(Face.id.in_(part))))
    if unknown := sorted(set(face_ids) - there):
        raise UnknownSubject(f"no such faces: {', '.join(map(str, unknown))}; 'visage faces' lists those there are")


def members(session: Session, identity_id: int) -> list[int]:
    """The faces of an identity, by id."""
    return list(
        session.scalars(
            select(FaceIdentity.face_id).where(FaceIdentity.identity_id == identity_id).order_by(FaceIdentity.face_id)
        )
    )


def places(session: Session, face_ids: Collection[int], model_version_id: int) -> dict[int, int]:
    """The identity of each face that has one under an embedding version."""
    found: dict[int, int] = {}
    for part in chunks(face_ids):
        rows = select(FaceIdentity.face_id, FaceIdentity.identity_id).where(
            FaceIdentity.model_version_id == model_version_id,
            FaceIdentity.face_id.in_(part),
            FaceIdentity.identity_id.is_not(None),
        )
        found.update({face: place for face, place in session.execute(rows).tuples() if place is not None})
    return found


def person_of(session: Session, identity: Identity) -> Person:
    """Whom an identity stands for; nobody had said anything about it so far if the person is new."""
    if identity.person_id is not None:
        return session.get_one(Person, session.get_one(Person, identity.person_id).root_id)
    person = new_person(session)
    identity.person_id = person.id
    return person


def new_person(session: Session) -> Person:
    person = Person()
    session.add(person)
    session.flush()
    person.root_id = person.id
    session.flush()
    return person


def family(session: Session, root_id: int) -> list[int]:
    """A person and all that turned out to be the same one."""
    return list(session.scalars(select(Person.id).where(Person.root_id == root_id)))


def enter(
    session: Session,
    kind: DecisionKind,
    who: str,
    person: Person | None,
    other: Person | None = None,
    name: str | None = None,
) -> Decision:
    """Write a decision down."""
    decision = Decision(
        kind=kind.value,
        who=who,
        person_id=None if person is None else person.id,
        other_id=None if other is None else other.id,
        name=name,
    )
    session.add(decision)
    session.flush()
    return decision


def say(session: Session, decision: Decision, faces: Iterable[int], says: Says, person: Person | None = None) -> None:
    """State something about faces; earlier statements that contradict it are ended."""
    faces = sorted(set(faces))
    mine = family(session, person.root_id) if person is not None and person.root_id is not None else []
    contrary: dict[Says, ColumnElement[bool]] = {
        Says.IS: or_(
            and_(Statement.says == Says.IS.value, Statement.person_id.not_in(mine)),
            and_(Statement.says == Says.IS_NOT.value, Statement.person_id.in_(mine)),
            Statement.says == Says.IGNORED.value,
        ),
        Says.IS_NOT: and_(Statement.says == Says.IS.value, Statement.person_id.in_(mine)),
        Says.IGNORED: Statement.says == Says.IS.value,
    }
    for part in chunks(faces):
        session.execute(
            update(Statement)
            .where(IN_FORCE, Statement.face_id.in_(part), contrary[says])
            .values(ended_by_id=decision.id)
        )
    person_id = None if person is None else person.id
    session.add_all(
        Statement(decision_id=decision.id, face_id=face, person_id=person_id, says=says.value) for face in faces
    )
    session.flush()


def stated(says: Says, persons: Sequence[int] | None = None) -> ColumnElement[bool]:
    """Condition on `Statement`: in force, of this kind, about these persons."""
    condition = and_(IN_FORCE, Statement.says == says.value)
    return condition if persons is None else and_(condition, Statement.person_id.in_(persons))


def holding_apart(session: Session, root_a: int, root_b: int) -> list[Decision]:
    """Decisions in force which say that two persons are not the same."""
    a, b = family(session, root_a), family(session, root_b)
    return list(
        session.scalars(
            select(Decision).where(
                STANDING,
                Decision.kind.in_(APART),
                or_(
                    and_(Decision.person_id.in_(a), Decision.other_id.in_(b)),
                    and_(Decision.person_id.in_(b), Decision.other_id.in_(a)),
                ),
            )
        )
    )


def end(session: Session, decisions: Sequence[Decision], by: Decision) -> None:
    """Let decisions that hold persons apart end, with what they say a face is not."""
    for decision in decisions:
        decision.ended_by_id = by.id
        session.execute(
            update(Statement).where(stated(Says.IS_NOT), Statement.decision_id == decision.id).values(ended_by_id=by.id)
        )
    session.flush()


def contradictions(session: Session, persons: Sequence[int]) -> list[tuple[int, int]]:
    """(face, decision) where the face was confirmed as one of these persons, and the decision says that it is not another."""
    other = aliased(Statement)
    return list(
        session.execute(
            select(Statement.face_id, Statement.decision_id)
            .join(other, other.face_id == Statement.face_id)
            .where(
                stated(Says.IS_NOT, persons),
                other.ended_by_id.is_(None),
                other.says == Says.IS.value,
                other.person_id.in_(persons),
            )
            .order_by(Statement.face_id)
        )
        .tuples()
        .all()
    )


def denied(session: Session, persons: Sequence[int]) -> set[int]:
    """Faces that a decision in force says are not one of these persons."""
    return set(session.scalars(select(Statement.face_id).where(stated(Says.IS_NOT, persons))))


def unite(session: Session, kept: Person, absorbed: Person) -> None:
    """From now on the second person is the first."""
    absorbed.merged_into_id = kept.id
    session.execute(update(Person).where(Person.root_id == absorbed.id).values(root_id=kept.id))
    session.flush()
    session.expire_all()


def describe(session: Session, root_id: int) -> None:
    """Bring a person's name, and whether to ignore them, up to date with the decisions in force; the latest one counts."""
    root = session.get_one(Person, root_id)
    # A name given to the person itself goes before those of persons that were merged into it.
    name = session.scalar(
        select(Decision.name)
        .where(STANDING, Decision.kind == DecisionKind.NAME.value, Decision.person_id.in_(family(session, root_id)))
        .order_by((Decision.person_id == root_id).desc(), Decision.id.desc())
        .limit(1)
    )
    ignored = exists().where(
        STANDING,
        Decision.kind == DecisionKind.IGNORE.value,
        Decision.person_id.in_(family(session, root_id)),
    )
    root.name, root.ignored = name, bool(session.scalar(select(ignored)))
    session.flush()


def resting_on(session: Session, decision: Decision) -> list[int]:
    """Later decisions, still in force, about the same persons or faces: they are to be undone first."""
    roots = select(Person.root_id).where(Person.id.in_([decision.person_id, decision.other_id]))
    persons = select(Person.id).where(Person.root_id.in_(roots))
    faces = select(Statement.face_id).where(Statement.decision_id == decision.id)
    about = exists().where(Statement.decision_id == Decision.id, Statement.face_id.in_(faces))
    return list(
        session.scalars(
            select(Decision.id)
            .where(
                Decision.id > decision.id,
                Decision.undone_at.is_(None),
                or_(Decision.person_id.in_(persons), Decision.other_id.in_(persons), about),
            )
            .order_by(Decision.id.desc())
        )
    )


def withdraw(session: Session, decision: Decision, who: str) -> set[int]:
    """Take a decision back, and put those in force again that it had ended; returns the persons concerned, by their roots."""
    decision.undone_at, decision.undone_by = now(), who
    for entity in (Statement, Decision):
        session.execute(update(entity).where(entity.ended_by_id == decision.id).values(ended_by_id=None))
    session.execute(delete(Statement).where(Statement.decision_id == decision.id))
    concerned = [p for p in (decision.person_id, decision.other_id) if p is not None]
    if decision.kind == DecisionKind.MERGE.value and decision.other_id is not None:
        session.get_one(Person, decision.other_id).merged_into_id = None
        session.flush()
        _find_roots(session, concerned)
    session.expire_all()
    return {root for p in concerned if (root := session.get_one(Person, p).root_id) is not None}


def _find_roots(session: Session, persons: Sequence[int]) -> None:
    roots = select(Person.root_id).where(Person.id.in_(persons))
    relatives = session.scalars(
        select(Person).where(Person.root_id.in_(roots)).order_by((Person.root_id == Person.id).desc(), Person.id)
    ).all()
    by_id = {person.id: person for person in relatives}
    for person in relatives:
        root, passed = person, {person.id}
        while (following := by_id.get(root.merged_into_id or 0)) is not None:
            root = following
            if root.id in passed:  # a circle, of when whoever was merged away could be merged once more
                root.merged_into_id = None
            passed.add(root.id)
        person.root_id = root.id
    session.flush()


def forget_persons(session: Session, roots: Iterable[int]) -> None:
    """Remove persons about whom nothing is decided any more; their identities are a model's opinion again."""
    for root in roots:
        persons = family(session, root)
        decided = exists().where(
            Decision.undone_at.is_(None), or_(Decision.person_id.in_(persons), Decision.other_id.in_(persons))
        )
        if persons and not session.scalar(select(decided)):
            session.execute(update(Identity).where(Identity.person_id.in_(persons)).values(person_id=None, name=None))
            session.execute(update(Person).where(Person.id.in_(persons)).values(root_id=None))
            session.execute(delete(Person).where(Person.id.in_(persons)))
    session.expire_all()


def grouped_versions(session: Session) -> list[int]:
    """Embedding versions that have identities, the serving one first."""
    has_identities = exists().where(Identity.model_version_id == ModelVersion.id)
    return list(
        session.scalars(
            select(ModelVersion.id).where(has_identities).order_by(ModelVersion.serving.desc(), ModelVersion.id.desc())
        )
    )


def former_places(session: Session, decision_id: int) -> list[DecidedMove]:
    """Where the faces were that a decision moved."""
    return list(session.scalars(select(DecidedMove).where(DecidedMove.decision_id == decision_id)))


def confirmed_as(session: Session, persons: Sequence[int]) -> list[int]:
    """Faces of which a decision in force says that they are one of these persons."""
    return list(session.scalars(select(Statement.face_id).where(stated(Says.IS, persons))))


def spoken_of(session: Session, decision_id: int, says: Says) -> list[int]:
    """Faces of which a decision says this."""
    said = Statement.decision_id == decision_id, Statement.says == says.value
    return list(session.scalars(select(Statement.face_id).where(*said)))


def history(
    session: Session, limit: int, identity_id: int | None = None, before: int | None = None
) -> list[DecisionView]:
    """Decisions, the latest first; of one person, by an identity of theirs; those before a decision's id."""
    statement = select(Decision).order_by(Decision.id.desc()).limit(limit)
    if identity_id is not None:
        person_id = identity(session, identity_id).person_id
        persons = [] if person_id is None else family(session, person_id)
        statement = statement.where(or_(Decision.person_id.in_(persons), Decision.other_id.in_(persons)))
    if before is not None:
        statement = statement.where(Decision.id < before)
    decisions = session.scalars(statement).all()
    faces: dict[int, list[int]] = {}
    rows = select(Statement.decision_id, Statement.face_id).where(Statement.decision_id.in_([d.id for d in decisions]))
    for decision_id, face in session.execute(rows.order_by(Statement.face_id)).tuples():
        faces.setdefault(decision_id, []).append(face)
    shown = _shown_identities(session, {p for d in decisions for p in (d.person_id, d.other_id) if p is not None})
    return [
        DecisionView(
            decision_id=d.id,
            kind=d.kind,
            who=d.who,
            decided_at=d.decided_at,
            identity_id=shown.get(d.person_id),
            other_identity_id=shown.get(d.other_id),
            name=d.name,
            faces=tuple(faces.get(d.id, [])),
            undone_at=d.undone_at,
            undone_by=d.undone_by,
        )
        for d in decisions
    ]


def _shown_identities(session: Session, persons: set[int]) -> dict[int | None, int]:
    """The identity that stands for each person under the version that queries use, else the latest."""
    versions = grouped_versions(session)
    rows = session.execute(
        select(Person.id, Identity.id, Identity.model_version_id)
        .join(Identity, Identity.person_id == func.coalesce(Person.root_id, Person.id))
        .where(Person.id.in_(persons))
    ).tuples()
    shown: dict[int | None, int] = {}
    for person, found, _ in sorted(rows.all(), key=lambda row: -versions.index(row[2])):
        shown[person] = found
    return shown
