"""What reducing a photograph does to the faces in it: averaging areas (Pillow's BOX) against the way of `tasks.decode`.

    python -m tests.benchmarks.reducing photographs mosaics crops     each of the three sets, 2 to 10 minutes

Pictures up to four times as large as what detection looks at, as JPEG; the truth is what the same detector finds in all of
their pixels, its smallest face scaled alike. Missed and extra are faces without a partner (intersection over union above one
half); landmarks are off by shares of the distance between the eyes; cosines are between the embeddings of both views of a face.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from typing import cast

import numpy as np
import simplejpeg
import torch
from PIL import Image

from infra.settings import Settings
from models.detection.mtcnn import MTCNN, PRODUCTION
from models.quality import assess_quality
from tasks.align import align_faces
from tasks.decode import DecodeLimits, Photo, decode
from tasks.detect import Decoded, to_original
from tasks.embed import embed
from tasks.execution.inference import load_for_inference
from tasks.model_version import find_version
from tasks.photo_faces import BOXES, LANDMARKS, PORTRAIT, SCORES, PhotoFaces, crop
from tests.benchmarks import photo_sets
from tests.benchmarks.workplace import workplace
from tests.portraits import Pixels, jpeg, mirrored, portrait
from tests.weights import CACHE

FACTORS = (1.2, 1.5625, 1.9, 2.4, 3.125, 3.9)  # 1280 pixels times 3.125 are 12 megapixels
LONG_SIDE = Settings().detect_long_side


def photographs() -> Iterator[Pixels]:
    """Each photograph and two portraits at every factor."""
    for picture in [*photo_sets._pictures(), portrait(512), mirrored(512)]:
        for factor in FACTORS:
            scale = factor * LONG_SIDE / max(picture.shape[:2])
            size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
            yield np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def mosaics(each: int = 6) -> Iterator[Pixels]:
    """Squares of the photographs in the detail of their own pixels."""
    whole = photo_sets.mosaic(4992, 3744)
    for factor in FACTORS:
        for n in range(each):
            rolled = np.roll(whole, (377 * n, 511 * n), axis=(0, 1))
            yield np.ascontiguousarray(rolled[: round(LONG_SIDE * 0.75 * factor), : round(LONG_SIDE * factor)])


def crops() -> Iterator[Pixels]:
    """Crops of 128 pixels side by side, one face each."""
    coming = photo_sets._crops()
    for factor, each in zip(FACTORS, (6, 5, 4, 3, 2, 1), strict=True):
        width, height = round(LONG_SIDE * factor), round(LONG_SIDE * 0.75 * factor)
        for _ in range(each):
            picture = np.full((height, width, 3), 128, np.uint8)
            places = [(y, x) for y in range(0, height - 127, 128) for x in range(0, width - 127, 128)]
            for (y, x), (_, data) in zip(places, islice(coming, len(places)), strict=False):
                picture[y : y + 128, x : x + 128] = simplejpeg.decode_jpeg(data, "RGB")
            yield picture


def by_areas(data: bytes) -> Photo:
    """What `decode` makes for detection, but reduced by averaging areas."""
    ours = decode(data, long_side=LONG_SIDE)
    shrink = next(n for n in (8, 4, 2, 1) if n <= ours.scale)
    width, height = ceil(ours.width / shrink), ceil(ours.height / shrink)
    shrunk = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height))
    box = (0, 0, ours.width / shrink, ours.height / shrink)
    size = (ours.pixels.shape[1], ours.pixels.shape[0])
    return replace(ours, pixels=np.array(shrunk.resize(size, Image.Resampling.BOX, box=box)))


@dataclass
class Found:
    """How a way of reducing compares with the truth, over many pictures."""

    faces: int = 0
    missed: int = 0
    extra: int = 0
    landmarks: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    sharper: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        off, like = np.array(self.landmarks), np.array(self.cosines)
        return (
            f"{self.faces} faces, {self.missed} missed, {self.extra} extra; landmarks off by {off.mean():.4f}, 95% by less "
            f"than {np.quantile(off, 0.95):.4f}; cosine {like.mean():.5f}, 95% above {np.quantile(like, 0.05):.4f}; "
            f"sharpness {np.mean(self.sharper):+.4f}"
        )


class Comparison:
    """Detect and embed by the installed models."""

    def __init__(self) -> None:
        folder, registry = CACHE / "weights", f"sqlite:///{CACHE / 'mlflow.db'}"
        self.detector = cast(MTCNN, load_for_inference(find_version("mtcnn", folder, registry)))
        version = find_version("dlib-resnet", folder, registry)
        assert version.spec.preprocess is not None
        self.spec, self.template = version.spec, version.spec.preprocess.template
        self.network = load_for_inference(version)

    def faces(self, data: bytes, photo: Photo, smallest: float = PRODUCTION.min_face_size) -> PhotoFaces:
        """The faces of a photograph with their crops, as a night cuts them."""
        settings = replace(PRODUCTION, min_face_size=smallest)
        [found] = self.detector.detect([torch.from_numpy(photo.pixels)], settings)
        arrays = {
            BOXES: to_original(found.boxes.numpy().reshape(-1, 2, 2), photo.scale).reshape(-1, 4),
            LANDMARKS: to_original(found.landmarks.numpy(), photo.scale),
            SCORES: found.scores.numpy(),
        }
        return align_faces(Decoded(PhotoFaces(0, "", 0).having(**arrays), photo, data), DecodeLimits(), [self.template])

    def judge(self, data: bytes, way: Callable[[bytes], Photo], truth: PhotoFaces, found: Found) -> None:
        """Add a picture reduced in this way."""
        seen = self.faces(data, way(data))
        overlap = _overlap(truth.arrays[BOXES], seen.arrays[BOXES])
        hit = overlap.max(axis=1, initial=0) > 0.5
        found.faces += len(hit)
        found.missed += int((~hit).sum())
        found.extra += int((overlap.max(axis=0, initial=0) <= 0.5).sum())
        if not hit.any():
            return
        partner = overlap.argmax(axis=1)[hit]
        marks, own = truth.arrays[LANDMARKS][hit], seen.arrays[LANDMARKS][partner]
        eyes = np.linalg.norm(marks[:, 0] - marks[:, 1], axis=1)
        found.landmarks += (np.linalg.norm(own - marks, axis=2).mean(axis=1) / eyes).tolist()
        there, here = (
            embed(self.network, self.spec, faces.arrays[crop(self.template)][rows], "cpu")
            for faces, rows in ((truth, hit), (seen, partner))
        )
        found.cosines += (there * here).sum(axis=1).tolist()
        found.sharper += (_sharpness(seen)[partner] - _sharpness(truth)[hit]).tolist()


def _sharpness(faces: PhotoFaces) -> np.ndarray:
    columns = (torch.from_numpy(faces.arrays[name]) for name in (PORTRAIT, LANDMARKS, SCORES))
    return assess_quality(*columns).sharpness.numpy()


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def main() -> None:
    """Compare on the sets named and print a line for each way."""
    with workplace():
        pass  # installs the models
    comparison = Comparison()
    ways = {"areas": by_areas, "ours": lambda data: decode(data, long_side=LONG_SIDE)}
    for name in sys.argv[1:]:
        found: dict[str, Found] = defaultdict(Found)
        for picture in {"photographs": photographs, "mosaics": mosaics, "crops": crops}[name]():
            data = jpeg(picture, quality=90)
            whole = decode(data)
            smallest = PRODUCTION.min_face_size * max(whole.width, whole.height) / LONG_SIDE
            truth = comparison.faces(data, whole, smallest)
            for way, photo in ways.items():
                comparison.judge(data, photo, truth, found[way])
        for way, result in found.items():
            print(f"{name}, {way}: {result}", flush=True)


if __name__ == "__main__":
    main()
