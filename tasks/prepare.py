"""The fused front of the pipeline: read, decode, detect, align and assess, in one process, for groups of photos.

Reading and decoding run in threads, one group of photos ahead of whoever takes them. A whole photo's pixels never leave here.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from infra.catalog.custody.erasing import ERASED, Erased
from infra.catalog.database import Catalog
from infra.catalog.images import Work, claim, pending
from infra.patience import patient
from infra.storage import InvalidKey, ObjectTooLarge, StoreError
from tasks.align import align_photos
from tasks.assess import assess
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.execution.guard import given_up, halving
from tasks.execution.time_limit import Call, Workers
from tasks.images.perceptual_hash import perceptual_hash
from tasks.job import Job
from tasks.photo_faces import BOXES, PhotoFaces

GROUP = 16  # photos that are detected together: more gains nothing on a CPU, and each costs up to 5 MB of pixels
CROPS = 64  # of files so small that they are faces cut out already: there, calling takes as long as computing
CROP_BYTES = 32_768
GROUP_BYTES = 64 * 2**20  # of files, held for a second look: in memory are two groups more than there are threads
THREADS = 4  # reading and decoding release Python's lock
REFUSALS = ("store_unavailable", "access_denied", "object_missing", "store_missing", "timeout")
LASTING = (InvalidKey, ObjectTooLarge)  # every other refusal of a store may be over by the next run

Result = TypeVar("Result")
Read = PhotoFaces | tuple[PhotoFaces, bytes]
"""A photo that could not be read, or one with its bytes."""


@dataclass(frozen=True)
class Claimed:
    """Photos that were read: some are finished, as they failed or another run or copy has their bytes; the others are ours, and
    about to be decoded."""

    finished: list[PhotoFaces]
    ours: list[tuple[PhotoFaces, "Call[PhotoFaces | Decoded]"]]


class Prepare:
    """Turn a page of image ids (first, last) into groups of photos with boxes, landmarks, crops and quality.

    One thread claims the groups, because only the first claimed copy of a photo is processed; `threads` workers prepare them.
    """

    def __init__(self, job: Job, threads: int = 1) -> None:
        self.job, self.threads = job, threads
        self.catalog = Catalog(job.settings.catalog_url)
        self.store = job.photographs()
        self.detect = Detect(job.recipe.detector, job.device)
        self.limits = DecodeLimits(max_bytes=job.settings.max_bytes, max_megapixels=job.settings.max_megapixels)
        self.decoders = Workers(THREADS, job.settings.item_seconds, "decode")
        with self.catalog.read() as session:
            self.erased = Erased(session, job.collection_id)
        self.refused = 0  # photos that the store has refused, one after the other, until now

    def take(self, page: tuple[int, int]) -> Iterator[Claimed]:
        """Read a page's photos, claim their contents, and begin to decode them, a group at a time; read the next one meanwhile.

        Raises:
            StoreError: if the collection as a whole cannot be read any more. What was not read stays to be done.
            CatalogUnavailable: if the catalog is away for longer than patience reaches.
        """
        work = self._pending(page)
        groups = even_groups(work, self.threads)
        reading = self._begin_reading(groups[0]) if groups else []
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            read = [self._await(call, _photo(work), "read") for call, work in zip(reading, group, strict=True)]
            self._mind_the_store(read)
            reading = self._begin_reading(following)
            yield self._claimed(read)

    def __call__(self, group: Claimed) -> list[PhotoFaces]:
        """Detect, align and assess a group; returns all of its photos."""
        finished = list(group.finished)
        decoded = self.decoded(group)
        finished += [item for item in decoded if isinstance(item, PhotoFaces)]
        pictures = [item for item in decoded if isinstance(item, Decoded)]
        detected = halving(pictures, self.detect, lambda item, error: given_up(item.photo, "detect", error))
        finished += [item for item in detected if isinstance(item, PhotoFaces)]
        found = [item for item in detected if isinstance(item, Decoded)]
        finished += halving(found, self.finish, lambda item, error: given_up(item.photo, "align", error))
        return finished

    def decoded(self, group: Claimed) -> list[PhotoFaces | Decoded]:
        """Wait for a group's pictures. One for which memory did not suffice is tried once more, alone in its group."""
        decoded = [self._await(call, photo, "decode") for photo, call in group.ours]
        return [
            self._await(self.decoders.submit(call.work, *call.arguments), photo, "decode")
            if _short_of_memory(item)
            else item
            for (photo, call), item in zip(group.ours, decoded, strict=True)
        ]

    def close(self) -> None:
        """Let go of threads and connections."""
        self.decoders.close()
        self.catalog.close()

    @patient
    def _pending(self, page: tuple[int, int]) -> list[Work]:
        with self.catalog.read() as session:
            return pending(session, self.job.collection_id, self.job.run_id, page, self.job.keys)

    def _begin_reading(self, group: Sequence[Work]) -> list[Call[Read]]:
        return [self.decoders.submit(self._read, work) for work in group]

    def _await(self, call: Call[Result], photo: PhotoFaces, stage: str) -> Result | PhotoFaces:
        """What a thread has made of a photo; if the thread hangs, or fails as none should, the photo with that failure."""
        try:
            return self.decoders.wait(call)
        except Exception as error:
            return given_up(photo, stage, error)

    def _read(self, work: Work) -> Read:
        photo = _photo(work)
        start = time.perf_counter()
        try:
            blob = self.store.read(work.key, self.limits.max_bytes, work.etag)
        except StoreError as error:
            reason = _snake_case(type(error).__name__)
            message = str(error).removeprefix(f"{self.store.url(work.key)}: ")
            return photo.failed("read", reason, message, retryable=not isinstance(error, LASTING))
        photo = replace(photo, sha256=hashlib.sha256(blob.data).hexdigest())
        return photo.timed("read", time.perf_counter() - start), blob.data

    def _mind_the_store(self, read: Sequence[Read]) -> None:
        """Ask the store itself once it has refused many photos in a row: if it is gone, so are all that would follow."""
        for item in read:
            refused = isinstance(item, PhotoFaces) and item.failure is not None and item.failure.reason in REFUSALS
            self.refused = self.refused + 1 if refused else 0
        if self.refused >= GROUP:
            patient(lambda: next(self.store.list(), None))()
            self.refused = 0

    def _claimed(self, read: Sequence[Read]) -> Claimed:
        read = [self._unless_erased(item) for item in read]
        claimed = self._claim([item for item in read if not isinstance(item, PhotoFaces)])
        failed = [item for item in read if isinstance(item, PhotoFaces)]
        return Claimed(
            [*failed, *(photo for photo, _ in claimed if photo.shared)],
            [(photo, self.decoders.submit(self.decode, photo, data)) for photo, data in claimed if not photo.shared],
        )

    def _unless_erased(self, item: Read) -> Read:
        """Bytes that were erased on request are not taken in again."""
        if isinstance(item, PhotoFaces) or not self.erased.content(item[0].sha256):
            return item
        return item[0].failed("read", ERASED, "these bytes were erased on request: not taken in again", retryable=False)

    @patient
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

    def decode(self, photo: PhotoFaces, data: bytes) -> PhotoFaces | Decoded:
        """Decode a photo's bytes as large as detection needs them.

        Raises:
            MemoryError: if memory does not suffice.
        """
        start = time.perf_counter()
        try:
            picture = decode(data, self.limits, long_side=self.job.settings.detect_long_side)
        except DecodeFailure as failure:
            return photo.failed("decode", failure.reason.value, str(failure), retryable=False)
        photo = replace(
            photo,
            format=picture.format,
            width=picture.width,
            height=picture.height,
            taken_at=None if picture.exif_time is None else picture.exif_time.isoformat(),
            perceptual_hash=perceptual_hash(picture.pixels),
            notes=tuple(picture.notes),
        )
        return Decoded(photo.timed("decode", time.perf_counter() - start), picture, data)

    def finish(self, items: Sequence[Decoded]) -> list[PhotoFaces]:
        """Align and assess the faces that were found in photos."""
        start = time.perf_counter()
        photos = align_photos([self._without_erased(item) for item in items], self.limits, self.job.templates)
        photos = _shared_out("align", start, photos)
        start = time.perf_counter()
        return _shared_out("assess", start, assess(photos, self.job.recipe, self.job.device))

    def _without_erased(self, item: Decoded) -> Decoded:
        """Faces that were erased on request are not taken in again."""
        gone = self.erased.faces(item.photo.sha256, item.photo.arrays[BOXES])
        if not gone.any():
            return item
        return replace(item, photo=item.photo.having(**{n: a[~gone] for n, a in item.photo.arrays.items()}))


def even_groups(page: Sequence[Work], threads: int) -> list[Sequence[Work]]:
    """Cut a page into groups of at most GROUP, or CROPS, as many for each of the `threads`, and of equal size but for one.

    Those of large files are cut again: each has at most GROUP_BYTES, or one photo.
    """
    most = CROPS if all(work.size <= CROP_BYTES for work in page) else GROUP
    rounds = -(-len(page) // (most * threads))
    count = min(rounds * threads, len(page))
    ends = [-(-k * len(page) // count) for k in range(count + 1)] if count else []
    return [part for start, end in pairwise(ends) for part in _light_parts(page[start:end])]


def _light_parts(group: Sequence[Work]) -> Iterator[Sequence[Work]]:
    start = held = 0
    for place, work in enumerate(group):
        if place > start and held + work.size > GROUP_BYTES:
            yield group[start:place]
            start, held = place, 0
        held += work.size
    yield group[start:]


def _photo(work: Work) -> PhotoFaces:
    return PhotoFaces(work.image_id, work.key, work.size)


def _short_of_memory(item: PhotoFaces | Decoded) -> bool:
    return isinstance(item, PhotoFaces) and item.failure is not None and item.failure.reason == "out_of_memory"


def _shared_out(stage: str, start: float, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
    """Note the time since `start` that a stage took, an equal share with each photo."""
    share = (time.perf_counter() - start) / max(len(photos), 1)
    return [photo.timed(stage, share) for photo in photos]


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")
