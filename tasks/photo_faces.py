"""What travels between the stages: one photo with its faces.

Pixels of the photo stay in the actor that decoded it; only crops travel. Between Ray actors a photo is packed as one
safetensors buffer: one copy, no pickled objects, and no trouble with photos of zero faces in columnar blocks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from infra.catalog.work.failures import FailureRecord
from models.template import Template


@dataclass(frozen=True)
class PhotoFaces:
    """A photo on its way through the stages.

    `arrays` hold one row per face (or per restored face), named by the functions below and the constants. `shared` says
    that another image of this run processes the same bytes. A photo with a `failure` passes the later stages untouched.
    """

    image_id: int
    key: str
    size: int
    etag: str = ""
    content_id: int | None = None
    sha256: str = ""
    shared: bool = False
    format: str = ""
    width: int = 0
    height: int = 0
    taken_at: str | None = None
    perceptual_hash: str | None = None
    notes: tuple[str, ...] = ()
    failure: FailureRecord | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def face_count(self) -> int:
        return len(self.arrays[BOXES]) if BOXES in self.arrays else 0

    def having(self, **arrays: np.ndarray) -> "PhotoFaces":
        """The same photo with more arrays."""
        return replace(self, arrays={**self.arrays, **arrays})

    def timed(self, stage: str, seconds: float) -> "PhotoFaces":
        """The same photo with the time noted that a stage took for it."""
        return replace(self, seconds={**self.seconds, stage: self.seconds.get(stage, 0.0) + seconds})

    def failed(self, stage: str, reason: str, message: str, retryable: bool) -> "PhotoFaces":
        """The same photo, given up: its faces so far are dropped, so that nothing half-done is recorded.

        The message does not say where the photo lies: its bytes may lie under other keys as well.
        """
        record = FailureRecord(self.key, stage, reason, message, retryable, self.image_id)
        return replace(self, failure=record, arrays={})


def of_all(photos: Sequence[PhotoFaces], name: str) -> np.ndarray:
    """One array of the faces of all photos, photo by photo."""
    return np.concatenate([photo.arrays[name] for photo in photos])


def handed_out(photos: Sequence[PhotoFaces], arrays: Mapping[str, np.ndarray]) -> list[PhotoFaces]:
    """Give each photo its rows of arrays that hold those of all faces, photo by photo."""
    ends = np.cumsum([photo.face_count for photo in photos]).tolist()
    return [
        photo.having(**{name: rows[end - photo.face_count : end] for name, rows in arrays.items()})
        for photo, end in zip(photos, ends, strict=True)
    ]


BOXES = "boxes"  # (n, 4) float32, pixels of the upright original
LANDMARKS = "landmarks"  # (n, 5, 2) float32
SCORES = "scores"  # (n,) float32
QUALITY = "quality"  # (n,) float32
PORTRAIT = "portrait"  # (n, 256, 256, 3) uint8: the crop that is kept beside the catalog
EMBEDDING = "embedding"  # (n, D) float32, unit length
EMBEDDING_BESIDE = "embedding.beside"  # (n, E) float32, unit length: by the job's companion version
RESTORED_FACES = "restored.faces"  # (m,) int64: which faces were restored
TO_RESTORE = "restored.input"  # (m, S, S, 3) uint8: these faces as the restorer wants to see them
RESTORED = "restored.pixels"  # (m, S, S, 3) uint8
FIDELITY = "restored.fidelity"  # (m,) float32, dB
RESTORED_SHARPNESS = "restored.sharpness"  # (m,) float32, as the quality's part of that name
REPEATED = "restored.repeated"  # (m,) bool: half precision overflowed, and float32 did not
RESTORED_EMBEDDING = "restored.embedding"  # (m, D) float32, unit length
IDENTITY_SIMILARITY = "restored.identity_similarity"  # (m,) float32


def crop(template: Template) -> str:
    """(n, S, S, 3) uint8: the faces as `template` shows them."""
    return f"crop.{template.name}"


def restored_crop(template: Template) -> str:
    """(m, S, S, 3) uint8: the restored faces as `template` shows them."""
    return f"restored.crop.{template.name}"


def quality_part(name: str) -> str:
    """(n,) float32: one part of the quality score."""
    return f"quality.{name}"


def quality_parts(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All parts of the quality score, by their names."""
    prefix = quality_part("")
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def estimate(contract: str, attribute: str, what: str) -> str:
    """What the model version with this contract says of an attribute.

    `value` (n,) float32, points (n, P, 2) float32 in pixels of the upright original, or a mask (n, S, S) uint8 of classes in
    the version's own crop; `confidence` (n,) float32, NaN where there is none; `probabilities` (n, classes) float32.
    """
    return f"attribute.{contract}.{attribute}.{what}"


def pack(photo: PhotoFaces) -> bytes:
    """Serialise for the way between actors."""
    plain: dict[str, Any] = {name: value for name, value in vars(photo).items() if name not in ("arrays", "failure")}
    plain["failure"] = None if photo.failure is None else asdict(photo.failure)
    return save({k: np.ascontiguousarray(v) for k, v in photo.arrays.items()}, {"photo": json.dumps(plain)})


def unpack(data: bytes) -> PhotoFaces:
    """The inverse of `pack`; arrays are read-only views of `data`'s copy."""
    length = int.from_bytes(data[:8], "little")
    plain = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["photo"])
    failure = plain.pop("failure")
    plain["notes"] = tuple(plain["notes"])
    return PhotoFaces(**plain, failure=None if failure is None else FailureRecord(**failure), arrays=load(data))
