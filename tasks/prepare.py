"""The fused front of the pipeline: read, decode, detect, align and assess, in one actor, for batches of photos.

Reading and decoding run in threads, one group of photos ahead of the detector. A whole photo's pixels never leave here.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from infra.catalog.database import Catalog
from infra.catalog.images import Work, claim, pending
from infra.storage import AccessDenied, StoreError
from tasks.align import align_faces
from tasks.assess import assess
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.guard import given_up, halving
from tasks.job import Job
from tasks.photo_faces import PhotoFaces

GROUP = 16  # photos that are detected together: more gains nothing on a CPU, and each costs up to 5 MB of pixels
THREADS = 4  # reading and decoding release Python's lock


class Prepare:
    """Turn a page of image ids (first, last) into groups of photos with boxes, landmarks, crops and quality."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.catalog = Catalog(job.settings.catalog_url)
        self.store = job.photographs()
        self.detect = Detect(job.recipe.detector, job.device)
        self.limits = DecodeLimits(max_bytes=job.settings.max_bytes, max_megapixels=job.settings.max_megapixels)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")

    def __call__(self, page: tuple[int, int]) -> Iterator[list[PhotoFaces]]:
        with self.catalog.read() as session:
            work = pending(session, self.job.collection_id, self.job.run_id, page)
        groups = [work[start : start + GROUP] for start in range(0, len(work), GROUP)]
        reading = self._begin_reading(groups[0]) if groups else []
        for following in [*groups[1:], []]:
            read = [future.result() for future in reading]
            reading = self._begin_reading(following)
            yield self._prepare(read)

    def _begin_reading(self, group: Sequence[Work]) -> list["Future[PhotoFaces | tuple[PhotoFaces, bytes]]"]:
        return [self.threads.submit(self._read, work) for work in group]

    def _read(self, work: Work) -> PhotoFaces | tuple[PhotoFaces, bytes]:
        photo = PhotoFaces(work.image_id, work.key, work.size)
        start = time.perf_counter()
        try:
            blob = self.store.read(work.key, self.limits.max_bytes, work.etag)
        except StoreError as error:
            reason = _snake_case(type(error).__name__)
            return photo.failed("read", reason, str(error), error.retryable or isinstance(error, AccessDenied))
        except Exception as error:
            return given_up(photo, "read", error)
        photo = replace(photo, sha256=hashlib.sha256(blob.data).hexdigest())
        return photo.timed("read", time.perf_counter() - start), blob.data

    def _prepare(self, read: Sequence[PhotoFaces | tuple[PhotoFaces, bytes]]) -> list[PhotoFaces]:
        finished = [item for item in read if isinstance(item, PhotoFaces)]
        claimed = self._claim([item for item in read if not isinstance(item, PhotoFaces)])
        finished += [photo for photo, _ in claimed if photo.shared]
        to_decode = [(photo, data) for photo, data in claimed if not photo.shared]
        decoded = list(self.threads.map(lambda item: self._decode(*item), to_decode))
        finished += [item for item in decoded if isinstance(item, PhotoFaces)]
        pictures = [item for item in decoded if isinstance(item, Decoded)]
        detected = halving(pictures, self.detect, _not_detected)
        return finished + [item if isinstance(item, PhotoFaces) else self._finish(item) for item in detected]

    def _claim(self, read: Sequence[tuple[PhotoFaces, bytes]]) -> list[tuple[PhotoFaces, bytes]]:
        if not read:
            return []
        job = self.job
        with self.catalog.write() as session:
            digests = [(photo.image_id, photo.sha256) for photo, _ in read]
            claims = claim(session, job.collection_id, job.run_id, job.recipe.digest, digests)
        return [
            (replace(photo, content_id=claims[photo.image_id][0], shared=not claims[photo.image_id][1]), data)
            for photo, data in read
        ]

    def _decode(self, photo: PhotoFaces, data: bytes) -> PhotoFaces | Decoded:
        start = time.perf_counter()
        try:
            picture = decode(data, self.limits, long_side=self.job.settings.detect_long_side)
        except DecodeFailure as failure:
            where = self.store.url(photo.key)
            return photo.failed("decode", failure.reason.value, f"{where}: {failure}", retryable=False)
        except Exception as error:
            return given_up(photo, "decode", error)
        photo = replace(
            photo,
            format=picture.format,
            width=picture.width,
            height=picture.height,
            taken_at=None if picture.exif_time is None else picture.exif_time.isoformat(),
            notes=tuple(picture.notes),
        )
        return Decoded(photo.timed("decode", time.perf_counter() - start), picture, data)

    def _finish(self, item: Decoded) -> PhotoFaces:
        recipe = self.job.recipe
        try:
            start = time.perf_counter()
            photo = align_faces(item, self.limits, recipe.templates)
            aligned = time.perf_counter()
            photo = assess(photo.timed("align", aligned - start), recipe)
            return photo.timed("assess", time.perf_counter() - aligned)
        except Exception as error:
            return given_up(item.photo, "align", error)


def _not_detected(item: Decoded, error: Exception) -> Decoded | PhotoFaces:
    return given_up(item.photo, "detect", error)


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")
