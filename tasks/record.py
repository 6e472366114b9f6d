"""Record: the crops as objects beside the catalog, then everything else in one transaction.

Object keys follow from the photo's bytes, the face's place in it and the model versions, so doing it twice writes the same
objects again, and a crash between the two leaves nothing that the next run does not use.
"""

import io
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import simplejpeg
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from infra.catalog.database import Catalog
from infra.catalog.faces import (
    AttributeRecord,
    FaceRecord,
    PhotoRecord,
    RestorationRecord,
    crop_keys,
    link_duplicates,
    record_photos,
)
from infra.catalog.ledger import fail_contents
from infra.catalog.work.failures import record_failures
from infra.catalog.work.runs import hold
from infra.patience import patient
from infra.storage import Store
from models.spec import Attribute, Kind
from tasks.assess import EYE_DISTANCE
from tasks.images.mark import marked_png
from tasks.job import Job
from tasks.model_version import ModelVersion
from tasks.photo_faces import (
    BOXES,
    EMBEDDING,
    EMBEDDING_BESIDE,
    FIDELITY,
    IDENTITY_SIMILARITY,
    LANDMARKS,
    PORTRAIT,
    QUALITY,
    REPEATED,
    RESTORED,
    RESTORED_EMBEDDING,
    RESTORED_FACES,
    RESTORED_SHARPNESS,
    SCORES,
    PhotoFaces,
    estimate,
    quality_part,
    quality_parts,
)
from tasks.restore import judge

JPEG_QUALITY = 95
WRITERS = 8


def crop_writers() -> ThreadPoolExecutor:
    """Threads that encode and write crops: both, and waiting for disk or network, leave Python's lock."""
    return ThreadPoolExecutor(WRITERS, thread_name_prefix="crop")


def record(catalog: Catalog, crops: Store, job: Job, photos: Sequence[PhotoFaces], writers: Executor) -> None:
    """Write what the stages found in a batch of photos, their crops in the threads of `writers`. Twice changes nothing.

    Raises:
        LeaseLost: if the run was closed meanwhile; then nothing is written.
    """
    done = [photo for photo in photos if photo.failure is None and not photo.shared]
    records = list(writers.map(lambda photo: _photo_record(photo, job, crops), done))
    place = job.photographs().url
    failures = [
        replace(photo.failure, message=f"{place(photo.key)}: {photo.failure.message}")
        for photo in photos
        if photo.failure is not None
    ]
    failed_contents = {
        photo.content_id: photo.failure
        for photo in photos
        if photo.failure is not None and photo.content_id is not None
    }
    shared = [(photo.image_id, photo.content_id) for photo in photos if photo.shared and photo.content_id is not None]
    contents = [photo.content_id for photo in records]

    @patient
    def write_rows() -> set[str]:
        with catalog.write() as session:
            hold(session, job.run_id)
            before = crop_keys(session, contents)
            record_photos(session, job.run_id, job.contract, records)
            link_duplicates(session, job.run_id, shared)
            record_failures(session, job.run_id, job.collection_id, failures)
            fail_contents(session, failed_contents)
            return before - crop_keys(session, contents) if before else before

    for key in write_rows():  # by another detector or restorer, or none: nothing refers to these crops any more
        patient(crops.delete)(key)


def folder_of(collection_id: int) -> str:
    """What the keys of a collection's crops begin with."""
    return f"{collection_id}/"


def digest_of(key: str) -> str:
    """The SHA-256 of the photo that a crop was cut from, by the crop's key; empty for a key of another kind."""
    parts = key.split("/")
    return parts[2] if len(parts) == 4 else ""


def _photo_record(photo: PhotoFaces, job: Job, crops: Store) -> PhotoRecord:
    assert photo.content_id is not None
    stem = f"{folder_of(job.collection_id)}{photo.sha256[:2]}/{photo.sha256}/{job.recipe.detector.contract}"
    return PhotoRecord(
        image_id=photo.image_id,
        content_id=photo.content_id,
        format=photo.format,
        width=photo.width,
        height=photo.height,
        taken_at=photo.taken_at,
        perceptual_hash=photo.perceptual_hash,
        notes=list(photo.notes),
        faces=tuple(
            _face_record(photo, face, f"{stem}-{_place(box)}", job, crops)
            for face, box in enumerate(photo.arrays[BOXES] if photo.face_count else ())
        ),
    )


def _place(box: np.ndarray) -> str:
    """Where a face is in its photo, for keys: no other face comes to have those of one that was erased."""
    return "_".join(str(round(float(edge))) for edge in box)


def _face_record(photo: PhotoFaces, face: int, stem: str, job: Job, crops: Store) -> FaceRecord:
    arrays = photo.arrays
    key = f"{stem}.jpg"
    pixels = np.ascontiguousarray(arrays[PORTRAIT][face])
    jpeg = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
    patient(crops.put)(key, jpeg, "image/jpeg")
    restoration = _restoration(photo, face, stem, job, crops)
    embedding, embedded_restorer_id = _embedding(photo, face, restoration, job)
    return FaceRecord(
        box=arrays[BOXES][face],
        landmarks=arrays[LANDMARKS][face],
        score=float(arrays[SCORES][face]),
        quality=float(arrays[QUALITY][face]),
        quality_parts={name: round(float(values[face]), 4) for name, values in quality_parts(arrays).items()},
        crop_key=key,
        embedding=embedding,
        embedding_beside=arrays[EMBEDDING_BESIDE][face] if EMBEDDING_BESIDE in arrays else None,
        attributes=tuple(_attributes(photo, face, stem, job, crops)),
        restoration=restoration,
        embedded_restorer_id=embedded_restorer_id,
    )


def _attributes(photo: PhotoFaces, face: int, stem: str, job: Job, crops: Store) -> Iterator[AttributeRecord]:
    ids = dict(zip([version.contract for version in job.recipe.describing], job.contract.describer_ids, strict=True))
    for version, attribute in job.recipe.stored_attributes:
        value = photo.arrays[estimate(version.contract, attribute.name, "value")][face]
        confidence = float(photo.arrays[estimate(version.contract, attribute.name, "confidence")][face])
        probabilities = photo.arrays.get(estimate(version.contract, attribute.name, "probabilities"))
        mask_key = None
        if attribute.kind is Kind.MASK:
            mask_key = f"{stem}-{version.contract}-{attribute.name}.png"
            patient(crops.put)(mask_key, mask_png(value, attribute, version), "image/png")
        yield AttributeRecord(
            model_version_id=ids[version.contract],
            name=attribute.name,
            kind=attribute.kind.value,
            unit=attribute.kind.unit,
            value=float(value) if value.ndim == 0 else None,
            label=attribute.classes[int(value)] if attribute.kind is Kind.CATEGORY else None,
            confidence=None if np.isnan(confidence) else confidence,
            probabilities=None if probabilities is None else _by_class(attribute, probabilities[face]),
            vector=value.reshape(-1) if value.ndim and attribute.kind is not Kind.MASK else None,
            mask_key=mask_key,
        )


def _by_class(attribute: Attribute, probabilities: np.ndarray) -> dict[str, float]:
    return {name: round(p, 5) for name, p in zip(attribute.classes, probabilities.tolist(), strict=True)}


def _restoration(photo: PhotoFaces, face: int, stem: str, job: Job, crops: Store) -> RestorationRecord | None:
    row = _restored_row(photo, face)
    if row is None or job.recipe.restorer is None or job.contract.restorer_id is None:
        return None
    arrays, restorer = photo.arrays, job.recipe.restorer
    fidelity, similarity = float(arrays[FIDELITY][row]), float(arrays[IDENTITY_SIMILARITY][row])
    before, after = float(arrays[quality_part("sharpness")][face]), float(arrays[RESTORED_SHARPNESS][row])
    key = f"{stem}-{restorer.contract}.png"
    patient(crops.put)(key, marked_png(arrays[RESTORED][row], restorer), "image/png")
    reason = judge(fidelity, before, after, similarity, job.least_similarity)
    return RestorationRecord(
        job.contract.restorer_id,
        accepted=not reason,
        reason=reason,
        crop_key=key,
        identity_similarity=similarity,
        fidelity=fidelity,
        photo_sharpness=before,
        sharpness=after,
        repeated_in_float32=bool(arrays[REPEATED][row]),
    )


def _restored_row(photo: PhotoFaces, face: int) -> int | None:
    """Where a face is among the restored ones, if it is."""
    rows = np.flatnonzero(photo.arrays.get(RESTORED_FACES, np.zeros(0, np.int64)) == face)
    return int(rows[0]) if len(rows) else None


def _embedding(
    photo: PhotoFaces, face: int, restoration: RestorationRecord | None, job: Job
) -> tuple[np.ndarray, int | None]:
    """The face's vector, and the restorer whose pixels it was made of: only where that was measured to help."""
    decision, row = job.recipe.decision, _restored_row(photo, face)
    if decision is None or row is None or restoration is None or not restoration.accepted:
        return photo.arrays[EMBEDDING][face], None
    if not decision.embeds(float(photo.arrays[EYE_DISTANCE][face])):
        return photo.arrays[EMBEDDING][face], None
    return photo.arrays[RESTORED_EMBEDDING][row], restoration.model_version_id


def mask_png(classes: np.ndarray, attribute: Attribute, version: ModelVersion) -> bytes:
    """Encode a map of class indices (S, S) uint8 as a PNG that shows them in colours; its text names classes and crop."""
    assert version.spec.preprocess is not None
    text = PngInfo()
    text.add_itxt("Description", f"{attribute.name}, estimated by {version.reference}")
    text.add_itxt("Classes", ", ".join(attribute.classes))
    text.add_itxt("Crop", version.spec.preprocess.template.name)
    picture = PillowImage.fromarray(classes)
    picture.putpalette([channel for i in range(len(attribute.classes)) for channel in _color(i)])
    file = io.BytesIO()
    picture.save(file, "png", pnginfo=text, optimize=True)
    return file.getvalue()


def _color(index: int) -> tuple[int, ...]:
    """Black for the first class, then hues that lie as far apart as neighbours can."""
    return (0, 0, 0) if not index else tuple(round(255 * c) for c in hsv_to_rgb(index * 0.618 % 1, 0.75, 0.95))
