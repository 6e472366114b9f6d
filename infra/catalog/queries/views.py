"""What people ask the catalog, as plain rows for tables, JSON and pages."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Integer, Row, bindparam, func, select
from sqlalchemy.orm import Session

from infra.catalog.queries.filters import FaceFilter
from infra.catalog.queries.portraits import people
from infra.catalog.tables.schema import (
    Attribute,
    Collection,
    Content,
    Embedding,
    Face,
    FaceIdentity,
    Failure,
    Identity,
    Image,
    ImageStatus,
    ModelVersion,
    Restoration,
)
from infra.catalog.versioning.versions import serving
from infra.catalog.visibility import visible


@dataclass(frozen=True)
class AttributeView:
    """What is measured or estimated of a face, by which model version. `vector` and `mask_key` as the catalog has them."""

    name: str
    value: float | None
    label: str | None
    confidence: float | None
    model: str
    kind: str = ""
    unit: str = ""
    vector: tuple[float, ...] | None = None
    mask_key: str | None = None


@dataclass(frozen=True)
class RestorationView:
    """A restored crop and its judgement. Its detail is synthetic."""

    crop_key: str
    accepted: bool
    reason: str
    identity_similarity: float
    fidelity: float
    model: str


@dataclass(frozen=True)
class FaceView:
    """A face with all that is known of it. `keys`: the objects whose bytes show it.

    `embedding_restorer`: which version invented the pixels that its embedding was made of; None: they were photographed.
    """

    face_id: int
    collection: str
    keys: tuple[str, ...]
    box: tuple[float, float, float, float]
    score: float
    quality: float
    quality_parts: dict[str, float]
    crop_key: str
    identity_id: int | None
    identity_name: str | None
    attributes: tuple[AttributeView, ...]
    restoration: RestorationView | None
    embedding_restorer: str | None


@dataclass(frozen=True)
class IdentityView:
    """A person, as far as one embedding model can tell."""

    identity_id: int
    name: str | None
    faces: int
    photos: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class FailureView:
    """A failure in one row."""

    run_id: int
    collection: str
    key: str
    stage: str
    reason: str
    message: str
    retryable: bool
    failed_at: datetime


# Made once: to put them together takes longer than the database takes to answer them.
_OF: BindParameter[int] = bindparam("faces", expanding=True)
_FACES = (
    select(
        *(Face.id, Face.x1, Face.y1, Face.x2, Face.y2, Face.score, Face.quality, Face.quality_parts, Face.crop_key),
        *(Collection.name.label("collection"), Identity.id.label("identity_id"), Identity.name.label("identity_name")),
    )
    .join(Content, Content.id == Face.content_id)
    .join(Collection, Collection.id == Content.collection_id)
    .outerjoin(
        FaceIdentity,
        (FaceIdentity.face_id == Face.id) & (FaceIdentity.model_version_id == bindparam("embedder", type_=Integer)),
    )
    .outerjoin(Identity, Identity.id == FaceIdentity.identity_id)
    .where(Face.id.in_(_OF))
)
_KEYS = (
    select(Face.id, Image.key)
    .join(Image, Image.content_id == Face.content_id)
    .where(Face.id.in_(_OF), Image.status != ImageStatus.MISSING.value)
    .order_by(Image.key)
)
_ATTRIBUTES = (
    select(*Attribute.__table__.columns, ModelVersion.name.label("model"), ModelVersion.version)
    .join(ModelVersion, ModelVersion.id == Attribute.model_version_id)
    .where(Attribute.face_id.in_(_OF))
    .order_by(Attribute.name)
)
_RESTORATIONS = (
    select(Restoration, ModelVersion.name, ModelVersion.version)
    .join(ModelVersion, ModelVersion.id == Restoration.model_version_id)
    .where(Restoration.face_id.in_(_OF))
)
_RESTORERS = (
    select(Embedding.face_id, ModelVersion.name, ModelVersion.version)
    .join(ModelVersion, ModelVersion.id == Embedding.restorer_id)
    .where(Embedding.face_id.in_(_OF), Embedding.model_version_id == bindparam("embedder", type_=Integer))
)


def faces_by_id(session: Session, face_ids: list[int], embedder_id: int | None) -> dict[int, FaceView]:
    """Everything about some faces; who they are believed to be, by one embedding version."""
    of = {"faces": face_ids}
    by_embedder = of | {"embedder": embedder_id}
    found = session.execute(_FACES, by_embedder).all()
    keys: dict[int, list[str]] = {}
    for face_id, key in session.execute(_KEYS, of).tuples():
        keys.setdefault(face_id, []).append(key)
    attributes: dict[int, list[AttributeView]] = {}
    for row in session.execute(_ATTRIBUTES, of):
        attributes.setdefault(row.face_id, []).append(attribute_view(row, f"{row.model}@{row.version}"))
    restorations = {
        row.face_id: RestorationView(
            row.crop_key, row.accepted, row.reason, row.identity_similarity, row.fidelity, f"{model}@{version}"
        )
        for row, model, version in session.execute(_RESTORATIONS, of).tuples()
    }
    restorers = {
        face_id: f"{model}@{version}" for face_id, model, version in session.execute(_RESTORERS, by_embedder).tuples()
    }
    return {
        face.id: FaceView(
            face_id=face.id,
            collection=face.collection,
            keys=tuple(keys.get(face.id, [])),
            box=(face.x1, face.y1, face.x2, face.y2),
            score=face.score,
            quality=face.quality,
            quality_parts=face.quality_parts,
            crop_key=face.crop_key,
            identity_id=face.identity_id,
            identity_name=face.identity_name,
            attributes=tuple(attributes.get(face.id, [])),
            restoration=restorations.get(face.id),
            embedding_restorer=restorers.get(face.id),
        )
        for face in found
    }


def attribute_view(row: Attribute | Row[Any], model: str) -> AttributeView:
    vector = None if row.vector is None else tuple(row.vector.tolist())
    return AttributeView(
        row.name, row.value, row.label, row.confidence, model, row.kind, row.unit, vector, row.mask_key
    )


def _serving_id(session: Session) -> int | None:
    version = serving(session)
    return None if version is None else version.id


def faces(
    session: Session, collection: str | None, identity_id: int | None, min_quality: float, limit: int, after: int = 0
) -> list[FaceView]:
    """Faces behind the id `after` in the order of their ids, of photos that are still in their collection."""
    chosen = FaceFilter(
        collections=() if collection is None else (collection,), identity_id=identity_id, min_quality=min_quality
    )
    conditions = Face.id > after, visible(), *chosen.clauses(session)
    ids = list(session.scalars(select(Face.id).where(*conditions).order_by(Face.id).limit(limit)))
    found = faces_by_id(session, ids, _serving_id(session))
    return [found[face_id] for face_id in ids]


def identities(session: Session, min_faces: int, limit: int) -> list[IdentityView]:
    """People by the number of their faces, most first, without those whom somebody wants ignored."""
    views = []
    for person in people(session, min_faces, None, None, None, limit):
        keys = session.scalars(
            select(Image.key)
            .join(Face, Face.content_id == Image.content_id)
            .join(FaceIdentity, FaceIdentity.face_id == Face.id)
            .where(FaceIdentity.identity_id == person.identity_id, Image.status != ImageStatus.MISSING.value)
            .distinct()
            .order_by(Image.key)
            .limit(20)
        )
        views.append(IdentityView(person.identity_id, person.name, person.faces, person.photos, tuple(keys)))
    return views


def failures(
    session: Session, collection: str | None, run_id: int | None, limit: int, include_resolved: bool = False
) -> list[FailureView]:
    """Failures, the latest first; those overcome since only on request."""
    statement = (
        select(Failure, Collection.name)
        .join(Collection, Collection.id == Failure.collection_id)
        .order_by(Failure.run_id.desc(), Failure.key)
        .limit(limit)
    )
    if collection is not None:
        statement = statement.where(Collection.name == collection)
    if run_id is not None:
        statement = statement.where(Failure.run_id == run_id)
    if not include_resolved:
        statement = statement.where(Failure.resolved_at.is_(None))
    return [
        FailureView(f.run_id, name, f.key, f.stage, f.reason, f.message, f.retryable, f.failed_at)
        for f, name in session.execute(statement).tuples()
    ]


def image_counts(session: Session, collection_id: int) -> dict[str, int]:
    """Images of a collection by status; statuses without an image count 0."""
    rows = session.execute(
        select(Image.status, func.count()).where(Image.collection_id == collection_id).group_by(Image.status)
    ).tuples()
    return {status.value: 0 for status in ImageStatus} | dict(rows.all())
