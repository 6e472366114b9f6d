"""Identities in the catalog, and the vectors that they are made of."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ScalarSelect, delete, exists, func, not_, null, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from infra.catalog import numbers
from infra.catalog.chunks import chunks
from infra.catalog.sides import unindexed
from infra.catalog.statements import upsert
from infra.catalog.tables.people import Person
from infra.catalog.tables.schema import (
    Embedding,
    Face,
    FaceIdentity,
    Identity,
    MergeProposal,
    ShrunkIdentity,
    UngroupedFace,
)


@dataclass(frozen=True)
class FaceVectors:
    """Faces with their vectors: ids (N,), embeddings (N, D), quality (N,), contents (N,), identities (N,; -1: none)."""

    ids: np.ndarray
    embeddings: np.ndarray
    quality: np.ndarray
    contents: np.ndarray
    identities: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def _vectors(rows: Sequence[tuple[int, np.ndarray, float, int, int | None]], dimension: int) -> FaceVectors:
    return FaceVectors(
        ids=np.array([row[0] for row in rows], np.int64),
        embeddings=np.concatenate([np.zeros(0, np.float32), *(row[1] for row in rows)]).reshape(-1, dimension),
        quality=np.array([row[2] for row in rows], np.float32),
        contents=np.array([row[3] for row in rows], np.int64),
        identities=np.array([-1 if row[4] is None else row[4] for row in rows], np.int64),
    )


_COLUMNS = (Face.id, Embedding.vector, Face.quality, Face.content_id, FaceIdentity.identity_id)


def ungrouped(session: Session, model_version_id: int, dimension: int, limit: int) -> FaceVectors:
    """The first faces that no run has grouped yet: about `limit` of them, always whole photos."""
    waiting = UngroupedFace.model_version_id == model_version_id
    first = select(UngroupedFace.face_id).where(waiting).order_by(UngroupedFace.face_id).limit(limit).subquery()
    photos = set(session.scalars(select(Face.content_id).join(first, first.c.face_id == Face.id)))
    rows = session.execute(
        select(Face.id, Embedding.vector, Face.quality, Face.content_id, null())
        .join(UngroupedFace, (UngroupedFace.face_id == Face.id) & waiting)
        .join(Embedding, (Embedding.face_id == Face.id) & (Embedding.model_version_id == model_version_id))
        .where(Face.content_id.in_(photos))
        .order_by(Face.id)
    )
    return _vectors(rows.tuples().all(), dimension)


def exemplars(session: Session, model_version_id: int, dimension: int) -> FaceVectors:
    """The faces that stand for the identities known so far."""
    known = FaceIdentity.model_version_id == model_version_id
    rows = session.execute(_exemplars(session, model_version_id).where(known).order_by(Face.id))
    return _vectors(rows.tuples().all(), dimension)


def _exemplars(session: Session, model_version_id: int):  # type: ignore[no-untyped-def]  # SQLAlchemy's own type is longer
    # By its index, SQLite would look through all vectors of the version.
    of_version = unindexed(session, Embedding.model_version_id) == model_version_id
    return (
        select(*_COLUMNS)
        .select_from(FaceIdentity)
        .join(Face, Face.id == FaceIdentity.face_id)
        .join(Embedding, (Embedding.face_id == Face.id) & of_version)
        .where(FaceIdentity.exemplar)
    )


def exemplars_of(session: Session, model_version_id: int, dimension: int, identities: Collection[int]) -> FaceVectors:
    """The faces that stand for some identities, by face id."""
    rows: list[tuple[int, np.ndarray, float, int, int | None]] = []
    # Nor by this one, through all exemplars of the version.
    statement = _exemplars(session, model_version_id).where(
        unindexed(session, FaceIdentity.model_version_id) == model_version_id
    )
    for part in chunks(identities):
        rows += session.execute(statement.where(FaceIdentity.identity_id.in_(part))).tuples()
    return _vectors(sorted(rows, key=lambda row: row[0]), dimension)


def representatives(session: Session, model_version_id: int, dimension: int, limit: int) -> np.ndarray:
    """One exemplar each, the first, of the people known longest: vectors (N, D)."""
    first = (
        select(FaceIdentity.identity_id, func.min(FaceIdentity.face_id).label("face_id"))
        .where(FaceIdentity.model_version_id == model_version_id, FaceIdentity.exemplar)
        .group_by(FaceIdentity.identity_id)
        .order_by(FaceIdentity.identity_id)
        .limit(limit)
        .subquery()
    )
    vectors = session.scalars(
        select(Embedding.vector)
        .join(first, first.c.face_id == Embedding.face_id)
        .where(Embedding.model_version_id == model_version_id)
        .order_by(first.c.identity_id)
    )
    return np.array([*vectors], np.float32).reshape(-1, dimension)


def count_exemplars(session: Session, model_version_id: int, at_most: int) -> int:
    """How many faces stand for identities; counting stops at `at_most`."""
    some = (
        select(FaceIdentity.identity_id)
        .where(FaceIdentity.model_version_id == model_version_id, FaceIdentity.exemplar)
        .limit(at_most)
        .subquery()
    )
    return session.scalar(select(func.count()).select_from(some)) or 0


def identities_of(session: Session, model_version_id: int, faces: Sequence[int]) -> dict[int, int]:
    """Who some faces are believed to be, as {face id: identity id}."""
    found: dict[int, int] = {}
    for part in chunks(faces):
        rows = select(FaceIdentity.face_id, FaceIdentity.identity_id).where(
            FaceIdentity.model_version_id == model_version_id,
            FaceIdentity.face_id.in_(part),
            FaceIdentity.identity_id.is_not(None),
        )
        found |= {face: identity for face, identity in session.execute(rows).tuples() if identity is not None}
    return found


def seen_together(session: Session, identities: Sequence[int]) -> np.ndarray:
    """Pairs (P, 2) of these identities that some photo shows side by side: they cannot be one person."""
    asked, pairs = set(identities), set[tuple[int, int]]()
    place, other = aliased(FaceIdentity), aliased(FaceIdentity)
    face, beside = aliased(Face), aliased(Face)
    for part in chunks(identities):
        statement = (
            select(place.identity_id, other.identity_id)
            .join(face, face.id == place.face_id)
            .join(beside, (beside.content_id == face.content_id) & (beside.id != face.id))
            .join(other, (other.face_id == beside.id) & (other.model_version_id == place.model_version_id))
            .where(place.identity_id.in_(part), place.identity_id < other.identity_id)
            .distinct()
        )
        pairs.update((a, b) for a, b in session.execute(statement).tuples() if a is not None and b in asked)
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def settled_identities(session: Session, identities: Sequence[int]) -> list[int]:
    """Those of these identities about which somebody decided something: no run merges two of them."""
    return [
        settled
        for part in chunks(identities)
        for settled in session.scalars(
            select(Identity.id).where(Identity.id.in_(part), Identity.person_id.is_not(None))
        )
    ]


def next_identity(session: Session) -> int:
    """The first number of those that a grouping may give to new identities, while nobody else makes any."""
    return numbers.last_given(session.connection(), Identity.__tablename__) + 1


def write_grouping(
    session: Session,
    run_id: int,
    model_version_id: int,
    identities: Mapping[int, int | None],
    *,
    merges: Sequence[tuple[int, int]],
    no_exemplars_now: Sequence[int],
    new_exemplars: Sequence[int],
) -> None:
    """Write {face: identity or None}, merges (absorbed, kept) and what changes among exemplars; new identities are made.

    An exemplar that stays one is best not named: a large catalog's lie far apart, each in a page that would be written anew.
    Faces that are gone meanwhile are passed over.
    """
    still = _still_there(session, identities)
    placed = {face: identity for face, identity in identities.items() if face in still}
    wanted = {identity for identity in placed.values() if identity is not None}
    there = set(session.scalars(select(Identity.id).where(Identity.id.in_(wanted))))
    founded = sorted(wanted - there)
    session.add_all(Identity(id=new, model_version_id=model_version_id) for new in founded)
    session.flush()
    numbers.go_on_after(session.connection(), Identity.__tablename__, max(founded, default=0))
    upsert(
        session,
        FaceIdentity,
        [
            {
                "face_id": face,
                "model_version_id": model_version_id,
                "identity_id": identity,
                "exemplar": False,
                "run_id": run_id,
            }
            for face, identity in placed.items()
        ],
        ["face_id", "model_version_id"],
        ["identity_id", "run_id"],
    )
    for absorbed, kept in merges:
        session.execute(update(FaceIdentity).where(FaceIdentity.identity_id == absorbed).values(identity_id=kept))
        session.execute(delete(Identity).where(Identity.id == absorbed))
    for faces, exemplar in ((no_exemplars_now, False), (new_exemplars, True)):
        for part in chunks(faces):
            session.execute(
                update(FaceIdentity)
                .where(
                    FaceIdentity.model_version_id == model_version_id,
                    FaceIdentity.face_id.in_(part),
                )
                .values(exemplar=exemplar)
            )


def _still_there(session: Session, faces: Iterable[int]) -> set[int]:
    """Those of some faces that no run has removed meanwhile. From now on none does until this transaction ends."""
    there: set[int] = set()
    for part in chunks(faces):
        still = select(Face.id).where(Face.id.in_(part)).order_by(Face.id)
        there.update(session.scalars(still.with_for_update(read=True, key_share=True)))
    return there


def write_proposals(session: Session, run_id: int, proposals: Sequence[tuple[int, int, int, int, float]]) -> None:
    """Write merges for a person to decide: (identity a, identity b, face of a, face of b, similarity).

    Those by faces that are gone meanwhile are passed over.
    """
    there = _still_there(session, {face for proposal in proposals for face in proposal[2:4]})
    names = ("identity_a_id", "identity_b_id", "face_a_id", "face_b_id", "similarity")
    upsert(
        session,
        MergeProposal,
        [
            {**dict(zip(names, proposal, strict=True)), "run_id": run_id}
            for proposal in proposals
            if there.issuperset(proposal[2:4])
        ],
        ["identity_a_id", "identity_b_id"],
        ["face_a_id", "face_b_id", "similarity", "run_id"],
    )


@dataclass(frozen=True)
class OpenProposal:
    """A proposed merge that nobody has answered, with the number of faces on each side."""

    a: Identity
    b: Identity
    faces_a: int
    faces_b: int
    similarity: float


def proposed(session: Session) -> list[tuple[int, int]]:
    """Pairs of identities whose merge is proposed."""
    return list(session.execute(select(MergeProposal.identity_a_id, MergeProposal.identity_b_id)).tuples())


def open_proposals(
    session: Session, model_version_id: int, limit: int, after: tuple[float, int, int] | None = None
) -> list[OpenProposal]:
    """Merges for a person to decide, most similar first, without those of people to be ignored.

    `after`: similarity and identities of the last one before.
    """
    a, b = aliased(Identity), aliased(Identity)
    ignored = select(Person.id).where(Person.ignored)

    def size(identity: type[Identity]) -> ScalarSelect[int]:
        return select(func.count()).where(FaceIdentity.identity_id == identity.id).scalar_subquery()

    shown = [or_(i.person_id.is_(None), i.person_id.not_in(ignored)) for i in (a, b)]
    statement = (
        select(a, b, size(a), size(b), MergeProposal.similarity)
        .select_from(MergeProposal)
        .join(a, a.id == MergeProposal.identity_a_id)
        .join(b, b.id == MergeProposal.identity_b_id)
        .where(a.model_version_id == model_version_id, *shown)
        .order_by(MergeProposal.similarity.desc(), a.id, b.id)
        .limit(limit)
    )
    if after is not None:
        similarity, *pair = after
        alike = (MergeProposal.similarity == similarity) & (tuple_(a.id, b.id) > tuple(pair))
        statement = statement.where(or_(MergeProposal.similarity < similarity, alike))
    return [OpenProposal(*row) for row in session.execute(statement).tuples()]


def remove_empty_identities(session: Session) -> None:
    """Remove identities that have lost their last face, but those about which somebody decided something."""
    empty = not_(exists().where(FaceIdentity.identity_id == Identity.id))
    shrunk = Identity.id.in_(select(ShrunkIdentity.identity_id))
    unsettled = Identity.person_id.is_(None)
    session.execute(delete(Identity).where(shrunk, empty, unsettled))
    kept = exists().where(
        Identity.id == ShrunkIdentity.identity_id, empty
    )  # until nothing is decided about them any more
    session.execute(delete(ShrunkIdentity).where(not_(kept)).execution_options(synchronize_session=False))
