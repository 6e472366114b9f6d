"""What is curated: labelled pictures of a folder or tar file, or of a collection with the vectors in the catalog."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.search.vectors import vectors_of
from infra.catalog.tables.schema import Content, Face, Image, ImageStatus
from infra.catalog.versioning.versions import serving
from infra.settings import Settings
from infra.storage import open_store
from infra.words import count
from tasks.embed import embed
from tasks.evaluation.central_face import FaceFinder, Progress, template_of
from tasks.execution.inference import load_for_inference
from tasks.images.perceptual_hash import perceptual_hash
from tasks.model_version import ModelVersion
from tasks.photo_faces import crop, of_all
from tasks.training.collection import Labelled, UnusableLabels

QUALITY = 85  # of the faces in the report


@dataclass(frozen=True)
class Studied:
    """Labelled pictures (N) with a face: names, who they are said to show, vectors (N, D) of unit length, perceptual hashes
    (64 bits; None: unknown), digests of their bytes. `show` gives the face in one as JPEG. `without_face` are left out."""

    names: tuple[str, ...]
    identities: tuple[str, ...]
    vectors: NDArray[np.float32]
    hashes: tuple[int | None, ...]
    digests: tuple[str, ...]
    show: Callable[[int], bytes]
    without_face: tuple[str, ...]
    model: str


def study_pictures(
    settings: Settings,
    detector: ModelVersion,
    embedder: ModelVersion,
    labelled: Labelled,
    on_progress: Progress = lambda done, total: None,
) -> Studied:
    """Find and embed the central face of every labelled picture, as every night finds and embeds faces.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        UnusableLabels: if a face is in none of them.
    """
    finder, network, template = FaceFinder(settings, detector), load_for_inference(embedder), template_of(embedder)
    identity = dict(zip(labelled.names, labelled.identities, strict=True))
    names, vectors, faces = list[str](), list[NDArray[np.float32]](), list[bytes]()
    looks: dict[str, tuple[int, str]] = {}
    for found in finder.look_through(labelled.images, labelled.names, on_progress):
        for item in found:
            digest = hashlib.sha256(item.data).hexdigest()
            looks[item.photo.key] = int(perceptual_hash(item.picture.pixels), 16), digest
        crops = of_all([finder.align(item, [template]) for item in found], crop(template))
        names += [item.photo.key for item in found]
        vectors.append(embed(network, embedder.spec, crops, "cpu"))
        faces += [_jpeg(pixels) for pixels in crops]
    if not names:
        raise UnusableLabels(
            f"{labelled.images}: a face was found in none of {count(len(labelled.names), 'labelled picture')}"
        )
    return Studied(
        tuple(names),
        tuple(identity[name] for name in names),
        np.concatenate(vectors),
        tuple(looks[name][0] for name in names),
        tuple(looks[name][1] for name in names),
        faces.__getitem__,
        tuple(name for name in labelled.names if name not in looks),
        embedder.reference,
    )


def study_collection(session: Session, settings: Settings, name: str, identities: dict[str, str]) -> Studied:
    """Take the largest face of every labelled photograph of a collection, with the vector that queries use.

    Raises:
        UnknownCollection: with the names there are.
        UnusableLabels: if no labelled photograph has such a face.
    """
    collection, version = collections.by_name(session, name), serving(session)
    area = (Face.x2 - Face.x1) * (Face.y2 - Face.y1)
    rows = session.execute(
        select(Image.key, Face.id, Face.crop_key, Content.perceptual_hash, Content.sha256)
        .join(Content, Content.id == Image.content_id)
        .join(Face, Face.content_id == Content.id)
        .where(Image.collection_id == collection.id, Image.status != ImageStatus.MISSING.value)
        .order_by(Image.key, area.desc(), Face.id)
    ).tuples()
    largest: dict[str, tuple[int, str, str | None, str]] = {}
    for key, face, crop_key, seen, sha256 in rows:
        if key in identities:
            largest.setdefault(key, (face, crop_key, seen, sha256))
    dimension = 0 if version is None else version.dimension or 0
    ids = np.array(sorted({face for face, *_ in largest.values()}), np.int64)
    known, vectors = vectors_of(session, 0 if version is None else version.id, dimension, ids)
    place = {face: row for row, face in enumerate(known.tolist())}
    keys = [key for key, (face, *_) in largest.items() if face in place]
    if not keys or version is None:
        raise UnusableLabels(
            f"{name}: no photograph that the labels name has a face with a vector here; labels name photographs by their keys, "
            f"and 'visage run {name}' makes the vectors"
        )
    crops = open_store(settings.crops_uri, settings.storage_options)
    return Studied(
        tuple(keys),
        tuple(identities[key] for key in keys),
        vectors[[place[largest[key][0]] for key in keys]],
        tuple(None if (seen := largest[key][2]) is None else int(seen, 16) for key in keys),
        tuple(largest[key][3] for key in keys),
        lambda row: crops.read(largest[keys[row]][1], settings.max_bytes).data,
        tuple(sorted(identities.keys() - set(keys))),
        f"{version.name}@{version.version}",
    )


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB"))
