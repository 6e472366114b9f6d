"""Making the identities of every embedding version agree with what people decided.

A machine never takes a face out of an identity, so what is right once stays right while `constraints` are heeded. Called again,
all of this finds nothing left to do.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, not_, or_, select, update
from sqlalchemy.orm import Session, aliased

from infra.catalog.chunks import chunks
from infra.catalog.identities.decisions import (
    APART,
    STANDING,
    family,
    grouped_versions,
    members,
    person_of,
    stated,
)
from infra.catalog.statements import upsert
from infra.catalog.tables.people import DecidedMove, Decision, Person, Says, Statement
from infra.catalog.tables.schema import Embedding, Face, FaceIdentity, Identity, MergeProposal

PEOPLE = "people"  # what groupings and decisions take turns at (`exclusive`)
FOUNDING_QUALITY = 0.3  # least quality of a face that may found an identity or be an exemplar; others only join
EXEMPLARS = 16  # faces that stand for a person, best first whenever they came
BY_HAND = 0  # what stands for the run where a person placed a face


def obey(session: Session, roots: Iterable[int], decision_id: int | None = None) -> None:
    """Let every version's identities follow what is decided about some persons; faces that move are noted for an undo."""
    for version in grouped_versions(session):
        for root in roots:
            _obey(session, version, session.get_one(Person, root), decision_id)


def carry_over(session: Session, model_version_id: int) -> None:
    """Make a place under this version for every person about whom something is decided, and for faces that came since.

    Persons are carried over by the faces that were confirmed, and by those that stood for them under another version.
    """
    placed = aliased(Identity)
    homeless = select(Person.id).where(
        Person.root_id == Person.id,
        not_(exists().where(placed.person_id == Person.id, placed.model_version_id == model_version_id)),
    )
    confirmed = (
        select(Person.root_id)
        .join(Statement, Statement.person_id == Person.id)
        .join(Face, Face.id == Statement.face_id)
        .where(stated(Says.IS), _without_row(Face.id, model_version_id), _known(model_version_id))
    )
    roots = {*session.scalars(homeless), *(root for root in session.scalars(confirmed) if root is not None)}
    for root in sorted(roots):
        _obey(session, model_version_id, session.get_one(Person, root), None)
    ignored = (
        select(Statement.face_id)
        .join(Embedding, (Embedding.face_id == Statement.face_id) & (Embedding.model_version_id == model_version_id))
        .where(stated(Says.IGNORED), _without_row(Statement.face_id, model_version_id))
    )
    _place(session, model_version_id, list(session.scalars(ignored)), None)


def carry_expired(session: Session, former_id: int, model_version_id: int) -> None:
    """Give faces whose embeddings have expired the place under a version that they had under a former one.

    No grouping will find them one. They join whoever has most of the other faces that they were with.
    """
    rows = (
        select(Face.id, Face.content_id, FaceIdentity.identity_id)
        .join(FaceIdentity, FaceIdentity.face_id == Face.id)
        .where(FaceIdentity.model_version_id == former_id, FaceIdentity.identity_id.is_not(None))
        .where(Face.embeddings_expired_at.is_not(None), _without_row(Face.id, model_version_id))
        .order_by(Face.id)
    )
    faces = session.execute(rows).tuples().all()
    heirs = _heirs(session, {former for _, _, former in faces if former is not None}, model_version_id)
    kept_out = set(barred(session, model_version_id, [face for face, _, _ in faces]))
    arriving: dict[int, dict[int, int]] = {}  # heir -> photo -> face: a photo shows nobody twice
    for face, photo, former in faces:
        if former is not None and (face, heirs[former]) not in kept_out:
            arriving.setdefault(heirs[former], {}).setdefault(photo, face)
    for heir, by_photo in arriving.items():
        _place(session, model_version_id, list(by_photo.values()), heir)


def _heirs(session: Session, identities: Collection[int], version: int) -> dict[int, int]:
    """The identity of a version that stands for whom each of a former version's does; new ones, where there is none."""
    heirs: dict[int, int] = {}
    was, is_now = aliased(FaceIdentity), aliased(FaceIdentity)
    for part in chunks(identities):
        votes = (
            select(was.identity_id, is_now.identity_id)
            .join(is_now, (is_now.face_id == was.face_id) & (is_now.model_version_id == version))
            .where(was.identity_id.in_(part), is_now.identity_id.is_not(None))
            .group_by(was.identity_id, is_now.identity_id)
            .order_by(func.count(), is_now.identity_id.desc())  # the last one of each counts
        )
        heirs.update((a, b) for a, b in session.execute(votes).tuples() if a is not None and b is not None)
        decided = select(Identity).where(Identity.id.in_(part), Identity.person_id.is_not(None))
        for former in session.scalars(decided).all():
            person = person_of(session, former)
            holder = _holder(session, version, person, family(session, person.id), members(session, former.id))
            assert holder is not None  # there are faces
            holder.name, heirs[former.id] = person.name, holder.id
    founded = {former: Identity(model_version_id=version) for former in sorted(set(identities) - heirs.keys())}
    session.add_all(founded.values())
    session.flush()
    return heirs | {former: identity.id for former, identity in founded.items()}


def _without_row(face_id, model_version_id: int):  # type: ignore[no-untyped-def]  # SQLAlchemy's own types are longer
    row = aliased(FaceIdentity)
    return not_(exists().where(row.face_id == face_id, row.model_version_id == model_version_id))


def _known(version: int) -> ColumnElement[bool]:
    """That a face can have a place under a version: it was embedded or placed, or its embeddings have expired."""
    embedded = exists().where(Embedding.face_id == Face.id, Embedding.model_version_id == version)
    return or_(embedded, Face.embeddings_expired_at.is_not(None), not_(_without_row(Face.id, version)))


def _obey(session: Session, version: int, person: Person, decision_id: int | None) -> None:
    persons = family(session, person.id)
    said = select(Statement.face_id).where(stated(Says.IS, persons))
    confirmed = set(session.scalars(select(Face.id).where(Face.id.in_(said), _known(version))))
    holder = _holder(session, version, person, persons, confirmed)
    if holder is None:
        return
    absorbed = select(Identity.id).where(
        Identity.person_id.in_(persons), Identity.model_version_id == version, Identity.id != holder.id
    )
    theirs = select(FaceIdentity.face_id).where(
        FaceIdentity.model_version_id == version, FaceIdentity.identity_id.in_(absorbed)
    )
    follow = set(session.scalars(theirs)) - confirmed
    twice = _shown_beside(session, holder.id, confirmed, follow)
    touched = _move(session, version, confirmed | follow - twice, holder.id, decision_id)
    touched |= _move(session, version, twice, None, decision_id)
    rejected = select(Statement.face_id).where(stated(Says.IS_NOT, persons))
    leaving = select(FaceIdentity.face_id).where(
        FaceIdentity.identity_id == holder.id, FaceIdentity.face_id.in_(rejected)
    )
    touched |= _move(session, version, set(session.scalars(leaving)), None, decision_id)
    session.execute(update(Identity).where(Identity.id.in_(absorbed)).values(name=None))
    holder.name = person.name
    if touched:
        refresh_exemplars(session, {*touched, holder.id})
    session.flush()


def _shown_beside(session: Session, identity_id: int, confirmed: set[int], arriving: set[int]) -> set[int]:
    """Those of some faces arriving in an identity whose photo shows one of its own, a confirmed one, or another that arrives.

    Only a person can say that two faces of one photo are one person. What follows from a merge under another version does not.
    """
    if not arriving:
        return set()
    there = confirmed.union(members(session, identity_id))
    photo_of = {
        face: photo
        for part in chunks(there | arriving)
        for face, photo in session.execute(select(Face.id, Face.content_id).where(Face.id.in_(part))).tuples()
    }
    taken, twice = {photo_of[face] for face in there if face in photo_of}, set[int]()
    for face in sorted(arriving):
        if photo_of[face] in taken:
            twice.add(face)
        taken.add(photo_of[face])
    return twice


def _embedded(session: Session, version: int, faces: Select[tuple[int]]) -> set[int]:
    """Those faces that have an embedding of a version."""
    statement = select(Embedding.face_id).where(Embedding.model_version_id == version, Embedding.face_id.in_(faces))
    return set(session.scalars(statement))


def _holder(
    session: Session, version: int, person: Person, persons: Sequence[int], confirmed: Collection[int]
) -> Identity | None:
    """The identity that stands for a person; where there is none, most of their faces say which it is, or found one."""
    held = Identity.model_version_id == version
    found = session.scalar(select(Identity).where(held, Identity.person_id == person.id))
    if found is not None:
        return found
    merged = exists().where(held, Identity.person_id.in_(persons))
    faces = set(confirmed) | _stood_for(session, version, persons)
    if not faces and not session.scalar(select(merged)):
        return None
    votes: Counter[int] = Counter()
    for part in chunks(faces):
        votes.update(
            session.scalars(
                select(Identity.id)
                .join(FaceIdentity, FaceIdentity.identity_id == Identity.id)
                .where(held, Identity.person_id.is_(None), FaceIdentity.face_id.in_(part))
            )
        )
    if votes:
        best = min(votes, key=lambda identity: (-votes[identity], identity))
        found = session.get_one(Identity, best)
        found.person_id = person.id
    else:
        found = Identity(model_version_id=version, person_id=person.id)
        session.add(found)
    session.flush()
    free = faces - _placed(session, version, faces)
    follow = free - set(confirmed)
    twice = _shown_beside(session, found.id, set(confirmed), follow)
    _place(session, version, sorted(free - twice), found.id)
    refresh_exemplars(session, {found.id})
    return found


def _stood_for(session: Session, version: int, persons: Sequence[int]) -> set[int]:
    """Faces that stand for a person under another version, the serving one if it has any, and have this one's embedding."""
    for other in grouped_versions(session):
        exemplars = (
            select(FaceIdentity.face_id)
            .join(Identity, Identity.id == FaceIdentity.identity_id)
            .where(Identity.model_version_id == other, Identity.person_id.in_(persons), FaceIdentity.exemplar)
        )
        if other != version and (faces := _embedded(session, version, exemplars)):
            return faces
    return set()


def _placed(session: Session, version: int, faces: Iterable[int]) -> set[int]:
    placed: set[int] = set()
    for part in chunks(faces):
        placed.update(
            session.scalars(
                select(FaceIdentity.face_id).where(
                    FaceIdentity.model_version_id == version, FaceIdentity.face_id.in_(part)
                )
            )
        )
    return placed


def _place(session: Session, version: int, faces: Sequence[int], identity_id: int | None) -> None:
    rows = [
        {"face_id": f, "model_version_id": version, "identity_id": identity_id, "exemplar": False, "run_id": BY_HAND}
        for f in faces
    ]
    upsert(session, FaceIdentity, rows, ["face_id", "model_version_id"], ["identity_id", "exemplar", "run_id"])


def ignore_everywhere(session: Session, faces: Collection[int], decision_id: int) -> None:
    """Take faces out of all identities, for good: grouping passes them over."""
    for version in grouped_versions(session):
        known = {
            face
            for part in chunks(faces)
            for face in session.scalars(select(Face.id).where(Face.id.in_(part), _known(version)))
        }
        touched = _move(session, version, known, None, decision_id)
        _place(session, version, sorted(known), None)
        refresh_exemplars(session, touched)


def heed(session: Session, faces: Collection[int]) -> None:
    """Let grouping look at faces again that it passed over, under every version, unless they are still to be ignored."""
    ignored = exists().where(Statement.face_id == FaceIdentity.face_id, stated(Says.IGNORED))
    nowhere = and_(FaceIdentity.identity_id.is_(None), FaceIdentity.run_id == BY_HAND, not_(ignored))
    for part in chunks(faces):
        session.execute(
            delete(FaceIdentity)
            .where(FaceIdentity.face_id.in_(part), nowhere)
            .execution_options(synchronize_session=False)
        )


def _move(
    session: Session, version: int, faces: Collection[int], identity_id: int | None, decision_id: int | None
) -> set[int]:
    """Move faces to an identity, or to none, to be grouped anew; returns the identities that lost or won some."""
    touched: set[int] = set()
    for part in chunks(faces):
        rows = select(FaceIdentity.face_id, FaceIdentity.identity_id).where(
            FaceIdentity.model_version_id == version, FaceIdentity.face_id.in_(part)
        )
        now_at = dict(session.execute(rows).tuples().all())
        moving = [f for f in part if (f in now_at if identity_id is None else now_at.get(f) != identity_id)]
        if decision_id is not None:
            moves = [
                {
                    "decision_id": decision_id,
                    "face_id": face,
                    "model_version_id": version,
                    "former_identity_id": now_at.get(face),
                }
                for face in moving
            ]
            upsert(session, DecidedMove, moves, ["decision_id", "face_id", "model_version_id"], [])
        if identity_id is None:
            session.execute(
                delete(FaceIdentity).where(FaceIdentity.model_version_id == version, FaceIdentity.face_id.in_(moving))
            )
        else:
            _place(session, version, moving, identity_id)
            touched.add(identity_id)
        touched.update(place for face in moving if (place := now_at.get(face)) is not None)
    return touched


def move_back(session: Session, moves: Iterable[DecidedMove]) -> None:
    """Put faces where they were before a decision, if that identity is still there; else they are grouped anew."""
    touched: set[int] = set()
    by_place: dict[tuple[int, int | None], list[int]] = {}
    for move in moves:
        former = move.former_identity_id
        there = former is not None and session.get(Identity, former) is not None
        by_place.setdefault((move.model_version_id, former if there else None), []).append(move.face_id)
    for (version, identity_id), faces in by_place.items():
        touched |= _move(session, version, faces, identity_id, None)
    refresh_exemplars(session, touched)


def let_go(session: Session, faces: Collection[int], since: datetime) -> None:
    """Take faces of which nothing is decided any more out of identities that were made around them `since`.

    Versions that were grouped after a decision followed it from the beginning, so there is nowhere to move back to.
    """
    decided = exists().where(Statement.face_id == FaceIdentity.face_id, stated(Says.IS))
    for version in grouped_versions(session):
        held = (
            select(FaceIdentity.face_id)
            .join(Identity, Identity.id == FaceIdentity.identity_id)
            .where(Identity.model_version_id == version, Identity.created_at >= since)
            .where(FaceIdentity.run_id == BY_HAND, not_(decided))
        )
        released = {
            face for part in chunks(faces) for face in session.scalars(held.where(FaceIdentity.face_id.in_(part)))
        }
        refresh_exemplars(session, _move(session, version, released, None, None))


def refresh_exemplars(session: Session, identities: Collection[int]) -> None:
    """Choose anew the faces that stand for some identities: those of highest quality, then of smallest id."""
    embedded = exists().where(  # not so where the collection's retention has deleted it
        Embedding.face_id == FaceIdentity.face_id, Embedding.model_version_id == FaceIdentity.model_version_id
    )
    for part in chunks(identities):
        rank = func.row_number().over(partition_by=FaceIdentity.identity_id, order_by=(Face.quality.desc(), Face.id))
        ranked = (
            select(FaceIdentity.face_id, FaceIdentity.model_version_id, rank.label("rank"))
            .join(Face, Face.id == FaceIdentity.face_id)
            .where(FaceIdentity.identity_id.in_(part), Face.quality >= FOUNDING_QUALITY, embedded)
            .subquery()
        )
        best = exists().where(
            ranked.c.face_id == FaceIdentity.face_id,
            ranked.c.model_version_id == FaceIdentity.model_version_id,
            ranked.c.rank <= EXEMPLARS,
        )
        session.execute(
            update(FaceIdentity)
            .where(FaceIdentity.identity_id.in_(part))
            .values(exemplar=best)
            .execution_options(synchronize_session=False)
        )
    session.expire_all()


def kept_apart(session: Session, identities: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of these identities that a decision keeps apart: persons declared different, or a face in one that is not the
    other's person."""
    pairs: set[tuple[int, int]] = set()
    root_of, other_root = aliased(Person), aliased(Person)
    holder, other = aliased(Identity), aliased(Identity)
    for part in chunks(identities):
        declared = (
            select(holder.id, other.id)
            .select_from(Decision)
            .join(root_of, root_of.id == Decision.person_id)
            .join(other_root, other_root.id == Decision.other_id)
            .join(holder, holder.person_id == root_of.root_id)
            .join(other, (other.person_id == other_root.root_id) & (other.model_version_id == holder.model_version_id))
            .where(STANDING, Decision.kind.in_(APART), or_(holder.id.in_(part), other.id.in_(part)))
        )
        denied = (
            select(FaceIdentity.identity_id, holder.id)
            .join(Statement, and_(Statement.face_id == FaceIdentity.face_id, stated(Says.IS_NOT)))
            .join(root_of, root_of.id == Statement.person_id)
            .join(
                holder,
                (holder.person_id == root_of.root_id) & (holder.model_version_id == FaceIdentity.model_version_id),
            )
            .where(FaceIdentity.identity_id.in_(part))
        )
        for a, b in [*session.execute(declared).tuples(), *session.execute(denied).tuples()]:
            if a is not None and a != b:
                pairs.add((min(a, b), max(a, b)))
    asked = set(identities)
    return sorted(pair for pair in pairs if asked.issuperset(pair))


def barred(session: Session, model_version_id: int, faces: Sequence[int]) -> list[tuple[int, int]]:
    """(face, identity) that grouping must not bring together: the face was rejected there, or a face of its own photo,
    placed before, belongs there."""
    pairs: set[tuple[int, int]] = set()
    mate = aliased(Face)
    for part in chunks(faces):
        rejected = (
            select(Statement.face_id, Identity.id)
            .join(Person, Person.id == Statement.person_id)
            .join(Identity, Identity.person_id == Person.root_id)
            .where(stated(Says.IS_NOT), Statement.face_id.in_(part), Identity.model_version_id == model_version_id)
        )
        beside = (
            select(Face.id, FaceIdentity.identity_id)
            .join(mate, (mate.content_id == Face.content_id) & (mate.id != Face.id))
            .join(
                FaceIdentity,
                (FaceIdentity.face_id == mate.id) & (FaceIdentity.model_version_id == model_version_id),
            )
            .where(Face.id.in_(part), FaceIdentity.identity_id.is_not(None))
        )
        for face, identity in [*session.execute(rejected).tuples(), *session.execute(beside).tuples()]:
            if identity is not None:
                pairs.add((face, identity))
    return sorted(pairs)


def drop_stale_proposals(session: Session) -> None:
    """Forget proposals whose faces have moved since, or which a decision has answered."""
    moved = not_(
        and_(
            exists().where(
                FaceIdentity.face_id == MergeProposal.face_a_id,
                FaceIdentity.identity_id == MergeProposal.identity_a_id,
            ),
            exists().where(
                FaceIdentity.face_id == MergeProposal.face_b_id,
                FaceIdentity.identity_id == MergeProposal.identity_b_id,
            ),
        )
    )
    session.execute(delete(MergeProposal).where(moved).execution_options(synchronize_session=False))
    rows = session.execute(select(MergeProposal.identity_a_id, MergeProposal.identity_b_id)).tuples().all()
    for a, b in kept_apart(session, sorted({identity for row in rows for identity in row})):
        session.execute(
            delete(MergeProposal)
            .where(MergeProposal.identity_a_id.in_([a, b]), MergeProposal.identity_b_id.in_([a, b]))
            .execution_options(synchronize_session=False)
        )
