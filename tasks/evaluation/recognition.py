"""Evaluate: models of the recognition role on labelled pairs of photographs.

Pictures are decoded and their faces found once, however many models are judged: each aligns and embeds the same faces.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from infra.ray_cluster import device
from infra.settings import Settings
from models.template import Template
from tasks.align import align_faces
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import embed
from tasks.evaluation.calibration import Calibration, fit
from tasks.evaluation.verification import Pairs, VerificationReport, evaluate, pair_similarities
from tasks.execution.inference import load_for_inference
from tasks.photo_faces import BOXES, PhotoFaces, crop
from tasks.versioning.install import ModelVersion

GROUP = 32
Progress = Callable[[int, int], None]


class ImagesMissing(LookupError):
    """The pairs name images that are not there."""


@dataclass(frozen=True)
class Verification:
    """What one model made of the pairs. `similarities` (P,) are NaN, and count as errors, where no face was found."""

    model: ModelVersion
    report: VerificationReport
    similarities: NDArray[np.float64]
    images: int
    without_face: tuple[str, ...]


def evaluate_verification(
    settings: Settings,
    detector: ModelVersion,
    embedders: Sequence[ModelVersion],
    images: Path,
    pairs: Pairs,
    on_progress: Progress = lambda done, total: None,
) -> list[Verification]:
    """Follow LFW's protocol on `pairs` of pictures in a tar file or folder: the same detect, align and embed as every night,
    on a GPU where there is one.

    In a picture of several faces the one nearest to the centre counts, as LFW's pictures are made.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        UnusablePairs: if no verification can be measured on them.
    """
    names = sorted({*pairs.a, *pairs.b})
    judged = [_Judged(version, load_for_inference(version, device())) for version in embedders]
    finder = FaceFinder(settings, detector)
    done = 0
    for group in _groups(read_images(images, names)):
        found = finder(group)
        faces = [finder.align(item, [judge.template for judge in judged]) for item in found]
        for judge in judged if faces else ():
            judge.embed(faces)
        done += len(group)
        on_progress(done, len(names))
    return [judge.verdict(pairs, names) for judge in judged]


def calibrate(verification: Verification, pairs: Pairs, images: Path) -> Calibration:
    """Fit what the model's similarities mean to the pairs in which both faces were found.

    Raises:
        ValueError: if they are too few, or do not rise with sameness.
    """
    there = np.isfinite(verification.similarities)
    source = f"{images.name}, {int(there.sum())} pairs of folds {', '.join(str(f) for f in np.unique(pairs.fold))}"
    return fit(verification.similarities[there], pairs.same[there], contract=verification.model.contract, source=source)


@dataclass
class _Judged:
    """A model that is being judged, with the embeddings that it has made so far."""

    version: ModelVersion
    network: nn.Module
    embeddings: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def template(self) -> Template:
        return template_of(self.version)

    def embed(self, faces: Sequence[PhotoFaces]) -> None:
        crops = np.concatenate([face.arrays[crop(self.template)] for face in faces])
        vectors = embed(self.network, self.version.spec, crops, device())
        self.embeddings.update({face.key: vector for face, vector in zip(faces, vectors, strict=True)})

    def verdict(self, pairs: Pairs, names: Sequence[str]) -> Verification:
        similarities = pair_similarities(pairs, self.embeddings)
        report = evaluate(similarities, pairs.same, pairs.fold, nan_is_missing_face=True)
        without_face = tuple(name for name in names if name not in self.embeddings)
        return Verification(self.version, report, similarities, len(names), without_face)


class FaceFinder:
    """Find the central face of pictures, as every night finds faces."""

    def __init__(self, settings: Settings, detector: ModelVersion) -> None:
        self.limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
        self.long_side = settings.detect_long_side
        self.detect = Detect(detector, device())

    def __call__(self, pictures: Iterable[tuple[str, bytes]]) -> list[Decoded]:
        """Decode pictures (name, bytes), and return those with a face, reduced to the one nearest to the centre."""
        return self.find([item for name, data in pictures if (item := self.decode(name, data)) is not None])

    def decode(self, name: str, data: bytes) -> Decoded | None:
        """Decode a picture; None if it cannot be: it then counts as one without a face, and is listed as such."""
        try:
            picture = decode(data, self.limits, long_side=self.long_side)
        except DecodeFailure:
            return None
        return Decoded(PhotoFaces(0, name, len(data), width=picture.width, height=picture.height), picture, data)

    def find(self, pictures: Sequence[Decoded]) -> list[Decoded]:
        """Return the pictures with a face, reduced to the one nearest to the centre."""
        return [_central(item) for item in self.detect(pictures) if item.photo.face_count]

    def align(self, item: Decoded, templates: Sequence[Template]) -> PhotoFaces:
        """Cut the face out as each of the templates wants it."""
        return align_faces(item, self.limits, templates)


def template_of(version: ModelVersion) -> Template:
    """The view of a face that a model embeds."""
    assert version.spec.preprocess is not None
    return version.spec.preprocess.template


def read_images(images: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Read pictures by name from a folder or a tar file.

    Raises:
        ImagesMissing: at the end, naming those that were not there.
    """
    missing = set(names)
    if images.is_dir():
        for name in names:
            path = images / name
            if path.is_file():
                missing.discard(name)
                yield name, path.read_bytes()
    else:
        with tarfile.open(images) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in missing and (file := archive.extractfile(member)) is not None:
                    missing.discard(name)
                    yield name, file.read()
    if missing:
        first = ", ".join(sorted(missing)[:5])
        raise ImagesMissing(
            f"{images}: {len(missing)} of {len(names)} pictures that are named are not there: {first}"
            f"{' ...' if len(missing) > 5 else ''}. Do --images and the CSV belong to the same data set?"
        )


def _groups(items: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    while group := list(islice(items, GROUP)):
        yield group


def _central(item: Decoded) -> Decoded:
    """The picture with the face alone whose box lies nearest to its centre."""
    boxes = item.photo.arrays[BOXES]
    centre = np.array([item.photo.width, item.photo.height]) / 2
    nearest = int(np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - centre, axis=1)))
    photo = item.photo.having(**{name: rows[nearest : nearest + 1] for name, rows in item.photo.arrays.items()})
    return replace(item, photo=photo)
