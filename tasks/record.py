"""Record: the crops as objects beside the catalog, then everything else in one transaction.

Object keys follow from the photo's bytes and the model versions, so doing it twice writes the same objects again, and a
crash between the two leaves nothing that the next run does not use.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from infra.catalog.runs import record_failures
from infra.storage import Store
from models.spec import Kind
from tasks.job import Job
from tasks.photo_faces import (
    BOXES,
    EMBEDDING,
    FIDELITY,
    IDENTITY_SIMILARITY,
    LANDMARKS,
    PORTRAIT,
    QUALITY,
    RESTORED,
    RESTORED_FACES,
    SCORES,
    PhotoFaces,
    estimate,
    quality_parts,
)
from tasks.restore import judge

JPEG_QUALITY = 95
WRITERS = 8


def record(catalog: Catalog, crops: Store, job: Job, photos: Sequence[PhotoFaces]) -> None:
    """Write what the stages found in a batch of photos. Doing it twice changes nothing."""
    done = [photo for photo in photos if photo.failure is None and not photo.shared]
    with ThreadPoolExecutor(WRITERS) as writers:  # encoding, and waiting for disk or network, leave Python's lock
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
    with catalog.write() as session:
        before = crop_keys(session, contents)
        record_photos(session, job.run_id, job.contract, records)
        link_duplicates(session, job.run_id, shared)
        record_failures(session, job.run_id, job.collection_id, failures)
        fail_contents(session, failed_contents)
        replaced = before - crop_keys(session, contents)
    for key in replaced:  # by another detector or restorer, or none: nothing refers to these crops any more
        crops.delete(key)


def _photo_record(photo: PhotoFaces, job: Job, crops: Store) -> PhotoRecord:
    assert photo.content_id is not None
    stem = f"{job.collection_id}/{photo.sha256[:2]}/{photo.sha256}/{job.recipe.detector.contract}"
    return PhotoRecord(
        image_id=photo.image_id,
        content_id=photo.content_id,
        format=photo.format,
        width=photo.width,
        height=photo.height,
        taken_at=photo.taken_at,
        notes=list(photo.notes),
        faces=tuple(_face_record(photo, face, f"{stem}-{face}", job, crops) for face in range(photo.face_count)),
    )


def _face_record(photo: PhotoFaces, face: int, stem: str, job: Job, crops: Store) -> FaceRecord:
    arrays = photo.arrays
    key = f"{stem}.jpg"
    pixels = np.ascontiguousarray(arrays[PORTRAIT][face])
    jpeg = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
    crops.put(key, jpeg, "image/jpeg")
    return FaceRecord(
        box=arrays[BOXES][face],
        landmarks=arrays[LANDMARKS][face],
        score=float(arrays[SCORES][face]),
        quality=float(arrays[QUALITY][face]),
        quality_parts={name: round(float(values[face]), 4) for name, values in quality_parts(arrays).items()},
        crop_key=key,
        embedding=arrays[EMBEDDING][face],
        attributes=tuple(_attributes(photo, face, job)),
        restoration=_restoration(photo, face, stem, job, crops),
    )


def _attributes(photo: PhotoFaces, face: int, job: Job) -> list[AttributeRecord]:
    ids = dict(zip([version.contract for version in job.recipe.describers], job.contract.describer_ids, strict=True))
    records = []
    for version, attribute in job.recipe.stored_attributes:
        value = float(photo.arrays[estimate(attribute.name, "value")][face])
        confidence = float(photo.arrays[estimate(attribute.name, "confidence")][face])
        probabilities = photo.arrays.get(estimate(attribute.name, "probabilities"))
        by_class = [] if probabilities is None else probabilities[face].tolist()
        records.append(
            AttributeRecord(
                model_version_id=ids[version.contract],
                name=attribute.name,
                value=value,
                label=attribute.classes[int(value)] if attribute.kind is Kind.CATEGORY else None,
                confidence=None if np.isnan(confidence) else confidence,
                probabilities={name: round(p, 5) for name, p in zip(attribute.classes, by_class, strict=bool(by_class))}
                or None,
            )
        )
    return records


def _restoration(photo: PhotoFaces, face: int, stem: str, job: Job, crops: Store) -> RestorationRecord | None:
    rows = np.flatnonzero(photo.arrays.get(RESTORED_FACES, np.zeros(0, np.int64)) == face)
    if not len(rows) or job.recipe.restorer is None or job.contract.restorer_id is None:
        return None
    row, restorer = int(rows[0]), job.recipe.restorer
    fidelity = float(photo.arrays[FIDELITY][row])
    similarity = float(photo.arrays[IDENTITY_SIMILARITY][row])
    key = f"{stem}-{restorer.contract}.png"
    crops.put(key, marked_png(photo.arrays[RESTORED][row], f"{restorer.spec.name} {restorer.version}"), "image/png")
    reason = judge(fidelity, similarity, job.least_similarity)
    return RestorationRecord(job.contract.restorer_id, not reason, reason, key, similarity, fidelity)


def marked_png(pixels: np.ndarray, model: str) -> bytes:
    """Encode restored pixels (S, S, 3) uint8 as a PNG whose text says that they are invented, and by which model."""
    text = PngInfo()
    text.add_itxt("Description", f"Restored face crop. Synthetic detail: invented by {model}, not photographed.")
    text.add_itxt("Software", f"Visage, {model}")
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "png", pnginfo=text, compress_level=1)
    return file.getvalue()
