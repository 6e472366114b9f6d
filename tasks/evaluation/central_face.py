"""The central face of labelled pictures, found, cut out and embedded as every night does it.

In a picture of several faces the one nearest to the centre counts, as LFW's pictures are made.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.ray_cluster import device
from infra.settings import Settings
from models.template import Template
from tasks.align import align_faces
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import embed
from tasks.execution.inference import load_for_inference
from tasks.model_version import ModelVersion
from tasks.photo_faces import BOXES, PhotoFaces, crop, of_all

GROUP = 32
Progress = Callable[[int, int], None]


class NoTarFile(ValueError):
    """What is to hold the pictures is neither a folder nor a tar file."""


class ImagesMissing(LookupError):
    """The images that somebody names are not there."""


def central_faces(
    settings: Settings,
    detector: ModelVersion,
    images: Path,
    names: Sequence[str],
    templates: Sequence[Template],
    on_progress: Progress = lambda done, total: None,
) -> Iterator[list[PhotoFaces]]:
    """Find the central face of pictures by name, and cut it out as each of the templates wants it, a group at a time.

    Raises:
        ImagesMissing: at the end, naming the first pictures that were not there.
    """
    finder = FaceFinder(settings, detector)
    for found in finder.look_through(images, names, on_progress):
        yield [finder.align(item, templates) for item in found]


class FaceFinder:
    """Find the central face of pictures, as every night finds faces."""

    def __init__(self, settings: Settings, detector: ModelVersion) -> None:
        self.limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
        self.long_side = settings.detect_long_side
        self.detect = Detect(detector, device())

    def __call__(self, pictures: Iterable[tuple[str, bytes]]) -> list[Decoded]:
        """Decode pictures (name, bytes), and return those with a face, reduced to the one nearest to the centre."""
        return self.find([item for name, data in pictures if (item := self.decode(name, data)) is not None])

    def look_through(
        self, images: Path, names: Sequence[str], on_progress: Progress = lambda done, total: None
    ) -> Iterator[list[Decoded]]:
        """Read pictures by name, and yield those with a face, a group at a time; one without any is passed over.

        Raises:
            ImagesMissing: at the end, naming the first pictures that were not there.
        """
        pictures, done = read_images(images, names), 0
        while group := list(islice(pictures, GROUP)):
            if found := self(group):
                yield found
            done += len(group)
            on_progress(done, len(names))

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


class Recogniser:
    """Embed faces with one model version, and keep the vectors by the names of their pictures."""

    def __init__(self, version: ModelVersion) -> None:
        self.version, self.template = version, template_of(version)
        self.network = load_for_inference(version, device())
        self.embeddings: dict[str, NDArray[np.float32]] = {}

    def embed(self, faces: Sequence[PhotoFaces]) -> None:
        """Embed pictures of one face each."""
        vectors = embed(self.network, self.version.spec, of_all(faces, crop(self.template)), device())
        self.embeddings.update({face.key: vector for face, vector in zip(faces, vectors, strict=True)})


def template_of(version: ModelVersion) -> Template:
    """The view of a face that a model embeds."""
    assert version.spec.preprocess is not None
    return version.spec.preprocess.template


def read_images(images: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Read pictures by name from a folder or a tar file.

    Raises:
        ImagesMissing: at the end, naming those that were not there.
        NoTarFile: if it is neither.
    """
    missing = set(names)
    if images.is_dir():
        for name in names:
            path = images / name
            if path.is_file():
                missing.discard(name)
                yield name, path.read_bytes()
    else:
        with open_tar(images) as archive:
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


@contextmanager
def open_tar(images: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file of pictures, compressed or not.

    Raises:
        NoTarFile: if it is none, or ends too early.
    """
    try:
        with tarfile.open(images) as archive:
            yield archive
    except (tarfile.ReadError, EOFError, zlib.error) as error:
        raise NoTarFile(f"{images}: no tar file of pictures ({error}); give a folder, or pack them with tar") from None


def _central(item: Decoded) -> Decoded:
    """The picture with the face alone whose box lies nearest to its centre."""
    boxes = item.photo.arrays[BOXES]
    centre = np.array([item.photo.width, item.photo.height]) / 2
    nearest = int(np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - centre, axis=1)))
    photo = item.photo.having(**{name: rows[nearest : nearest + 1] for name, rows in item.photo.arrays.items()})
    return replace(item, photo=photo)
