"""Faces in the catalog: a photo's faces, with everything derived from them, land in one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.orm import Session

from infra.catalog.identities import inheritance
from infra.catalog.search.vectors import put_embeddings
from infra.catalog.statements import table_of, upsert
from infra.catalog.tables.schema import (
    Attribute,
    Content,
    ContentStatus,
    Face,
    Image,
    ImageStatus,
    Restoration,
)
from infra.catalog.work.failures import resolve_failures


@dataclass(frozen=True)
class AttributeRecord:
    """What one model says of one attribute: a number, a vector of them, or a picture of classes under a key.

    `kind` and `unit` tell what the value is. A vector (K,) float32 holds points as x, y, x, y in pixels of the upright
    original, or one number for each of several things.
    """

    model_version_id: int
    name: str
    value: float | None
    label: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    kind: str = ""
    unit: str = ""
    vector: np.ndarray | None = None
    mask_key: str | None = None


@dataclass(frozen=True)
class RestorationRecord:
    """What became of restoring a face."""

    model_version_id: int
    accepted: bool
    reason: str
    crop_key: str
    identity_similarity: float
    fidelity: float
    photo_sharpness: float
    sharpness: float
    repeated_in_float32: bool


@dataclass(frozen=True)
class FaceRecord:
    """A face as the pipeline leaves it. Box (4,) and landmarks (5, 2) in pixels of the upright original.

    `embedded_restorer_id`: the version that restored the pixels of which `embedding` was made; None: they were photographed.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float
    quality: float
    quality_parts: dict[str, float]
    crop_key: str
    embedding: np.ndarray
    attributes: tuple[AttributeRecord, ...] = ()
    restoration: RestorationRecord | None = None
    embedded_restorer_id: int | None = None
    embedding_beside: np.ndarray | None = None


@dataclass(frozen=True)
class PhotoRecord:
    """A processed photo with its faces."""

    image_id: int
    content_id: int
    format: str
    width: int
    height: int
    taken_at: str | None
    perceptual_hash: str | None
    notes: list[str]
    faces: tuple[FaceRecord, ...] = field(default=())


@dataclass(frozen=True)
class Contract:
    """Row ids of the model versions at work, and the digest of them all. `describer_ids`: of all that give attributes.

    `companion_id`: of a second embedding version, which is no part of the digest.
    """

    recipe: str
    detector_id: int
    embedder_id: int
    describer_ids: tuple[int, ...]
    restorer_id: int | None
    companion_id: int | None = None


def record_photos(session: Session, run_id: int, contract: Contract, photos: Sequence[PhotoRecord]) -> None:
    """Write processed photos: their faces, embeddings, attributes and restorations. Doing it twice changes nothing."""
    if not photos:
        return
    contents = [photo.content_id for photo in photos]
    before = inheritance.known(session, contents)
    if before.faces:
        boxes = {photo.content_id: np.array([face.box for face in photo.faces]).reshape(-1, 4) for photo in photos}
        inheritance.keep_numbers(session, before, contract.detector_id, boxes)
    _write_faces(session, contract, photos)
    ids = _face_ids(session, contract, photos)
    faces = {ids[photo.content_id, ordinal]: face for photo in photos for ordinal, face in enumerate(photo.faces)}
    if before.faces:
        inheritance.hand_over(session, before, faces)
        _drop_outdated(session, contract, photos)
    _write_derived(session, contract, faces)
    done: dict[str, Any] = {"status": ContentStatus.DONE.value, "recipe": contract.recipe}
    described = ("format", "width", "height", "taken_at", "perceptual_hash", "notes")
    session.execute(
        update(Content),
        [{"id": p.content_id, **done, **{name: getattr(p, name) for name in described}} for p in photos],
    )
    done = {"status": ImageStatus.DONE.value, "recipe": contract.recipe, "retryable": False, "run_id": run_id}
    session.execute(update(Image), [{"id": p.image_id, "content_id": p.content_id, **done} for p in photos])
    resolve_failures(session, [photo.image_id for photo in photos])


def _write_faces(session: Session, contract: Contract, photos: Sequence[PhotoRecord]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "content_id": photo.content_id,
            "detector_id": contract.detector_id,
            "ordinal": ordinal,
            **dict(zip(("x1", "y1", "x2", "y2"), (float(v) for v in face.box), strict=True)),
            "landmarks": face.landmarks.reshape(-1),
            "score": face.score,
            "quality": face.quality,
            "quality_parts": face.quality_parts,
            "crop_key": face.crop_key,
        }
        for photo in photos
        for ordinal, face in enumerate(photo.faces)
    ]
    natural = ["content_id", "detector_id", "ordinal"]
    upsert(session, Face, rows, natural, [name for name in (rows[0] if rows else {}) if name not in natural])


def _drop_outdated(session: Session, contract: Contract, photos: Sequence[PhotoRecord]) -> None:
    """What another detector version, or a longer list of this one, has left behind is no longer a photo's truth."""
    by_count: dict[int, list[int]] = {}
    for photo in photos:
        by_count.setdefault(len(photo.faces), []).append(photo.content_id)
    for count, contents in by_count.items():
        outdated = (Face.detector_id != contract.detector_id) | (Face.ordinal >= count)
        session.execute(delete(Face).where(Face.content_id.in_(contents), outdated))


def _face_ids(session: Session, contract: Contract, photos: Sequence[PhotoRecord]) -> dict[tuple[int, int], int]:
    """Ids by (content id, ordinal)."""
    statement = select(Face.content_id, Face.ordinal, Face.id).where(
        Face.content_id.in_([photo.content_id for photo in photos]), Face.detector_id == contract.detector_id
    )
    return {(content, ordinal): face_id for content, ordinal, face_id in session.execute(statement).tuples()}


def _write_derived(session: Session, contract: Contract, faces: Mapping[int, FaceRecord]) -> None:
    put_embeddings(
        session,
        contract.embedder_id,
        {face_id: face.embedding for face_id, face in faces.items()},
        {face_id: face.embedded_restorer_id for face_id, face in faces.items()},
    )
    if contract.companion_id is not None:
        beside = {id_: face.embedding_beside for id_, face in faces.items() if face.embedding_beside is not None}
        put_embeddings(session, contract.companion_id, beside)
    # Attributes that the collection no longer asks for (a sensitive one switched off) go with the next processing.
    for derived in (Attribute, Restoration):
        session.execute(delete(derived).where(derived.face_id.in_(list(faces))))
    attributes = [{"face_id": face_id, **vars(a)} for face_id, face in faces.items() for a in face.attributes]
    restorations = [
        {"face_id": face_id, **vars(face.restoration)}
        for face_id, face in faces.items()
        if face.restoration is not None
    ]
    for entity, rows in ((Attribute, attributes), (Restoration, restorations)):
        if rows:
            session.execute(insert(table_of(entity)), rows)


def crop_keys(session: Session, contents: Iterable[int] | Select[tuple[int]]) -> set[str]:
    """Keys of the objects (photographed and restored crops, masks) that the faces of some contents refer to."""
    faces = Face.content_id.in_(contents if isinstance(contents, Select) else list(contents))
    photographed = set(session.scalars(select(Face.crop_key).where(faces)))
    if not photographed:
        return photographed
    restored = select(Restoration.crop_key).join(Face, Face.id == Restoration.face_id).where(faces)
    masks = select(Attribute.mask_key).join(Face, Face.id == Attribute.face_id)
    return {
        *photographed,
        *session.scalars(restored),
        *(key for key in session.scalars(masks.where(faces, Attribute.mask_key.is_not(None))) if key),
    }


def link_duplicates(session: Session, run_id: int, images: Sequence[tuple[int, int]]) -> None:
    """Note for (image id, content id) pairs that another image's processing covers them; `settle` closes them."""
    for image_id, content_id in images:
        session.execute(update(Image).where(Image.id == image_id).values(content_id=content_id, run_id=run_id))
