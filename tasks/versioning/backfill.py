"""Backfill: embed faces that are in the catalog already with another model version, beside what they have.

From the stored crops where these show all that the version wants to see, else from the photographs again; no face is looked for
anew. What one of the two cannot give, the other is asked for.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch

from infra.catalog.versioning.upgrades import FaceToEmbed
from infra.settings import Settings
from infra.storage import StoreError, open_store
from models.alignment import align, outside_share
from models.template import BoxTemplate, Template
from tasks.align import align_faces
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded
from tasks.embed import Embed
from tasks.execution.guard import given_up, set_time_limit
from tasks.execution.time_limit import Workers
from tasks.model_version import ModelVersion
from tasks.photo_faces import BOXES, EMBEDDING, LANDMARKS, PhotoFaces, crop
from tasks.recipe import PORTRAIT_TEMPLATE

CROPS, PHOTOGRAPHS = "crops", "photographs"
THREADS = 4  # reading and decoding release Python's lock


@dataclass(frozen=True)
class Embedded:
    """What became of some faces: vectors (D,) by face id, and why some have none."""

    vectors: dict[int, np.ndarray]
    given_up: dict[int, str]


class Embedder:
    """Make the embeddings of one version for faces of the catalog."""

    def __init__(self, settings: Settings, version: ModelVersion, device: str) -> None:
        assert version.spec.preprocess is not None
        set_time_limit(settings.item_seconds)
        self.settings, self.template = settings, version.spec.preprocess.template
        self.limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
        self.crops = open_store(settings.crops_uri, settings.storage_options)
        self.embed = Embed(version, device)
        self.threads = Workers(THREADS, settings.item_seconds, "backfill")

    @property
    def sources(self) -> tuple[str, ...]:
        """Where faces can be taken from. A crop around the detection's box cannot be cut out of a crop that is turned."""
        return (PHOTOGRAPHS,) if isinstance(self.template, BoxTemplate) else (CROPS, PHOTOGRAPHS)

    def __call__(self, faces: Sequence[FaceToEmbed], source: str) -> Embedded:
        """Embed faces from `source`, those for which it does not suffice from the other one."""
        result = Embedded({}, {})
        for way in sorted(self.sources, key=lambda way: way != source):
            left = [face for face in faces if face.face_id not in result.vectors]
            if left:
                found = self.from_one(left, way)
                reasons = {
                    face: f"{earlier}; {reason}" if (earlier := result.given_up.get(face)) else reason
                    for face, reason in found.given_up.items()
                }
                result = Embedded(result.vectors | found.vectors, reasons)
        return result

    def from_one(self, faces: Sequence[FaceToEmbed], source: str) -> Embedded:
        """Embed faces from one source only."""
        cut = self._from_crops if source == CROPS else self._from_photograph
        groups = [list(group) for _, group in groupby(faces, key=attrgetter("content_id"))]
        calls = [(group, self.threads.submit(cut, group)) for group in groups]
        photos = []
        for group, call in calls:
            try:
                photos.append(self.threads.wait(call))
            except Exception as error:
                photos.append(given_up(_photo(group), source, error))
        result = Embedded({}, {})
        for group, photo in zip(groups, self.embed(photos), strict=True):
            if photo.failure is None:
                result.vectors.update({f.face_id: v for f, v in zip(group, photo.arrays[EMBEDDING], strict=True)})
            else:
                result.given_up.update({f.face_id: f"{source}: {photo.failure.message}" for f in group})
        return result

    def close(self) -> None:
        """Let go of the threads."""
        self.threads.close()

    def _from_crops(self, faces: Sequence[FaceToEmbed]) -> PhotoFaces:
        photo = _photo(faces)
        views = []
        for face in faces:
            try:
                data = self.crops.read(face.crop_key, self.limits.max_bytes).data
                portrait = torch.from_numpy(decode(data, self.limits).pixels)
            except (StoreError, DecodeFailure) as error:
                return photo.failed(CROPS, "crop_unreadable", str(error), retryable=False)
            transforms = in_portrait(self.template, face)
            size = PORTRAIT_TEMPLATE.size
            if (
                tuple(portrait.shape[:2]) != (size, size)
                or outside_share(transforms, torch.tensor([[size, size]]), self.template.size).any()
            ):
                message = f"the stored crop of face {face.face_id} does not show all that the model wants to see"
                return photo.failed(CROPS, "crop_too_small", message, retryable=False)
            views.append(align([portrait], transforms, torch.zeros(1, dtype=torch.int64), self.template.size))
        return photo.having(**{crop(self.template): torch.cat(views).numpy()})

    def _from_photograph(self, faces: Sequence[FaceToEmbed]) -> PhotoFaces:
        photo, face = _photo(faces), faces[0]
        if face.key is None:
            return photo.failed(PHOTOGRAPHS, "missing", "no photograph that shows it is left", retryable=False)
        store = open_store(face.collection_uri, self.settings.storage_options)
        try:
            data = store.read(face.key, self.limits.max_bytes).data
            if hashlib.sha256(data).hexdigest() != face.sha256:
                return photo.failed(PHOTOGRAPHS, "changed", f"{store.url(face.key)} has changed", retryable=False)
            picture = decode(data, self.limits, long_side=self.settings.detect_long_side)
        except StoreError as error:
            return photo.failed(PHOTOGRAPHS, "unreadable", str(error), retryable=True)
        except DecodeFailure as error:
            return photo.failed(PHOTOGRAPHS, "undecodable", f"{store.url(face.key)}: {error}", retryable=False)
        boxes = np.array([f.box for f in faces], np.float32)
        landmarks = np.stack([f.landmarks for f in faces])
        found = replace(photo, width=picture.width, height=picture.height)
        item = Decoded(found.having(**{BOXES: boxes, LANDMARKS: landmarks}), picture, data)
        return align_faces(item, self.limits, [self.template])


def in_portrait(template: Template, face: FaceToEmbed) -> torch.Tensor:
    """Transforms (1, 2, 3) from a template's crop to the stored portrait of a face, which was cut out of the photo."""
    box, landmarks = torch.tensor([face.box]), torch.from_numpy(face.landmarks.copy())[None]
    to_photo = PORTRAIT_TEMPLATE.transforms(box, landmarks).double()
    linear, shift = to_photo[:, :, :2], to_photo[:, :, 2:]
    points = torch.linalg.solve(linear, landmarks.double().transpose(1, 2) - shift).transpose(1, 2)
    return template.transforms(box, points.float())


def _photo(faces: Sequence[FaceToEmbed]) -> PhotoFaces:
    return PhotoFaces(0, faces[0].key or faces[0].crop_key, 0, content_id=faces[0].content_id)


@dataclass(frozen=True)
class Trial:
    """How some faces fared: which source is to be used, the mean cosine of what both give, and the speed with it."""

    source: str
    crop_agreement: float | None
    faces_per_second: float | None


AGREES = 0.999  # mean cosine from which crops stand in for photographs; dlib-resnet: .9998 over 29 faces of 21 photos


def try_out(embedder: Embedder, faces: Sequence[FaceToEmbed]) -> Trial:
    """Embed a sample from both sources: crops are used where they give the same vectors as the photographs."""
    made = {source: _timed(embedder, faces, source) for source in embedder.sources}
    vectors = {source: found.vectors for source, (found, _) in made.items()}
    speed = {source: len(found.vectors) / seconds or None for source, (found, seconds) in made.items()}
    both = [face for face in vectors[PHOTOGRAPHS] if face in vectors.get(CROPS, {})]
    if not both:
        return Trial(PHOTOGRAPHS, None, speed[PHOTOGRAPHS] or speed.get(CROPS))
    agreement = float(np.mean([vectors[CROPS][face] @ vectors[PHOTOGRAPHS][face] for face in both]))
    source = CROPS if agreement >= AGREES else PHOTOGRAPHS
    return Trial(source, agreement, speed[source])


def _timed(embedder: Embedder, faces: Sequence[FaceToEmbed], source: str) -> tuple[Embedded, float]:
    start = time.monotonic()
    found = embedder.from_one(faces, source)
    return found, time.monotonic() - start


def rest_seconds(faces: int, seconds: float, rate: float | None, share: float) -> float:
    """Seconds to rest after `faces` that took `seconds`: for at most `rate` faces per second, and `share` of the time."""
    by_rate = faces / rate - seconds if rate else 0.0
    return max(by_rate, seconds * (1 / share - 1), 0.0)


def batches(contents: np.ndarray, size: int) -> Iterable[list[int]]:
    """Contents in their order, `size` at a time."""
    return (contents[start : start + size].tolist() for start in range(0, len(contents), size))
