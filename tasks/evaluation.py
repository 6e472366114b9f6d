"""Evaluate: the champion detector and recognition model on labelled pairs of photographs."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.settings import Settings
from tasks.align import align_faces
from tasks.calibration import Calibration, fit
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import embed
from tasks.install import ModelVersion, load_network
from tasks.photo_faces import BOXES, PhotoFaces, crop
from tasks.verification import Pairs, VerificationReport, evaluate, pair_similarities

GROUP = 32


class ImagesMissing(LookupError):
    """The pairs name images that are not there."""


@dataclass(frozen=True)
class Verification:
    """The result of an evaluation; images without a found face count as errors."""

    report: VerificationReport
    calibration: Calibration
    images: int
    without_face: tuple[str, ...]


def evaluate_verification(
    settings: Settings,
    detector: ModelVersion,
    embedder: ModelVersion,
    images: Path,
    pairs: Pairs,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Follow LFW's protocol on `pairs` of pictures in a tar file or folder: the same detect, align and embed as every night.

    In a picture of several faces the one nearest to the centre counts, as LFW's pictures are made.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
    """
    names = sorted({*pairs.a, *pairs.b})
    embeddings: dict[str, np.ndarray] = {}
    limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
    detect, network, preprocess = Detect(detector, "cpu"), load_network(embedder), embedder.spec.preprocess
    assert preprocess is not None
    done = 0
    for group in _groups(read_images(images, names)):
        found = detect([item for item in (_decoded(name, data, limits, settings) for name, data in group) if item])
        faces = [_central(item, limits, embedder) for item in found if item.photo.face_count]
        if faces:
            crops = np.stack([face.arrays[crop(preprocess.template)][0] for face in faces])
            vectors = embed(network, embedder.spec, crops, "cpu")
            embeddings.update({face.key: vector for face, vector in zip(faces, vectors, strict=True)})
        done += len(group)
        on_progress(done, len(names))
    similarities = pair_similarities(pairs, embeddings)
    report = evaluate(similarities, pairs.same, pairs.fold, nan_is_missing_face=True)
    there = np.isfinite(similarities)
    source = f"{images.name}, {int(there.sum())} pairs of folds {', '.join(str(f) for f in np.unique(pairs.fold))}"
    calibration = fit(similarities[there], pairs.same[there], contract=embedder.contract, source=source)
    return Verification(report, calibration, len(names), tuple(n for n in names if n not in embeddings))


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
            f"{images}: {len(missing)} of {len(names)} pictures that the pairs name are not there: {first}"
            f"{' ...' if len(missing) > 5 else ''}. Are --images and --pairs of the same data set?"
        )


def _groups(items: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    group: list[tuple[str, bytes]] = []
    for item in items:
        group.append(item)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def _decoded(name: str, data: bytes, limits: DecodeLimits, settings: Settings) -> Decoded | None:
    try:
        picture = decode(data, limits, long_side=settings.detect_long_side)
    except DecodeFailure:
        return None  # counts as a picture without a face, and is listed as such
    return Decoded(PhotoFaces(0, name, len(data), width=picture.width, height=picture.height), picture, data)


def _central(item: Decoded, limits: DecodeLimits, embedder: ModelVersion) -> PhotoFaces:
    """The face whose box lies nearest to the picture's centre."""
    assert embedder.spec.preprocess is not None
    boxes = item.photo.arrays[BOXES]
    centre = np.array([item.photo.width, item.photo.height]) / 2
    nearest = int(np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - centre, axis=1)))
    photo = item.photo.having(**{name: rows[nearest : nearest + 1] for name, rows in item.photo.arrays.items()})
    return align_faces(Decoded(photo, item.picture, item.data), limits, [embedder.spec.preprocess.template])
