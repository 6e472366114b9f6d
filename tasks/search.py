"""Search: who looks like this? Exact, over the vectors of the catalog, with calibrated probabilities."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from infra.catalog.people import visible_vectors
from infra.catalog.schema import ModelVersion as ModelVersionRow
from infra.catalog.versions import serving
from infra.catalog.views import FaceView, faces_by_id
from infra.settings import Settings
from tasks.align import align_faces
from tasks.calibration import Calibration
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import embed
from tasks.install import ModelVersion, NotInstalled, champion, find_version, load_network
from tasks.photo_faces import BOXES, SCORES, PhotoFaces, crop


@dataclass(frozen=True)
class Match:
    """A face of the catalog that resembles the one looked for. `probability`: of being the same person, at even odds
    beforehand; None while the embedding version is not calibrated."""

    face: FaceView
    similarity: float
    probability: float | None


@dataclass(frozen=True)
class Answer:
    """The matches of one face of the photo, most similar first, and how they were found."""

    box: tuple[float, ...]
    score: float
    matches: tuple[Match, ...]
    model: str
    method: str = "exact"


class NothingToSearch(LookupError):
    """The catalog holds no complete embedding version yet, or the photo shows no face."""


class UnreadablePhoto(ValueError):
    """The file to search with is no picture, or a damaged one."""


def search_photo(session: Session, settings: Settings, photo: Path, limit: int) -> list[Answer]:
    """Find for every face in a photo the most similar ones of the catalog. The photo is not kept.

    Raises:
        NothingToSearch: if there is no face in the photo, or nothing in the catalog.
        UnreadablePhoto: if the file is no picture that can be read.
        NotInstalled: if the models that made the catalog are not on this machine.
    """
    version_row = serving(session)
    if version_row is None:
        raise NothingToSearch("the catalog holds no embeddings yet; 'visage run COLLECTION' makes them")
    detector = champion(settings.detect_model, settings.weights_folder, settings.mlflow_uri)
    reference = f"{version_row.name}@{version_row.version}"
    embedder = find_version(reference, settings.weights_folder, settings.mlflow_uri)
    if embedder.contract != version_row.contract:
        raise NotInstalled(
            f"the catalog was made with another {reference} than is installed here (other weights or preprocessing); "
            "run 'visage run' to bring the catalog to what is here"
        )
    probe = _probe(settings, photo, detector, embedder)
    assert embedder.spec.preprocess is not None
    network = load_network(embedder)
    vectors = embed(network, embedder.spec, probe.arrays[crop(embedder.spec.preprocess.template)], "cpu")
    found = nearest(session, version_row, vectors, limit)
    return [
        Answer(tuple(float(v) for v in box), float(score), matches, reference)
        for box, score, matches in zip(probe.arrays[BOXES], probe.arrays[SCORES], found, strict=True)
    ]


def _probe(settings: Settings, photo: Path, detector: ModelVersion, embedder: ModelVersion) -> PhotoFaces:
    limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
    with photo.open("rb") as file:
        data = file.read(settings.max_bytes + 1)
    if len(data) > settings.max_bytes:
        raise UnreadablePhoto(
            f"{photo}: larger than {settings.max_bytes:,} bytes, which VISAGE_MAX_BYTES allows at most"
        )
    try:
        picture = decode(data, limits, long_side=settings.detect_long_side)
    except DecodeFailure as failure:
        raise UnreadablePhoto(f"{photo}: {failure}") from failure
    [decoded] = Detect(detector, "cpu")([Decoded(PhotoFaces(0, photo.name, len(data)), picture, data)])
    if not decoded.photo.face_count:
        raise NothingToSearch(
            f"{photo}: no face was found in this picture; try one where the face is larger or turned less"
        )
    assert embedder.spec.preprocess is not None
    return align_faces(decoded, limits, [embedder.spec.preprocess.template])


def nearest(session: Session, version: ModelVersionRow, queries: np.ndarray, limit: int) -> list[tuple[Match, ...]]:
    """The most similar visible faces for each query vector (Q, D), unit length; ties in the order of face ids."""
    if queries.ndim != 2 or queries.shape[1] != version.dimension or not np.isfinite(queries).all():
        raise ValueError(
            f"queries {queries.shape} must be finite vectors of {version.dimension} numbers, as the catalog's are"
        )
    best_ids = np.zeros((len(queries), 0), np.int64)
    best = np.zeros((len(queries), 0), np.float32)
    for chunk in visible_vectors(session, version.id, queries.shape[1]):
        similarities = np.concatenate([best, queries @ chunk.embeddings.T], axis=1)
        ids = np.concatenate([best_ids, np.broadcast_to(chunk.ids, (len(queries), len(chunk)))], axis=1)
        order = np.lexsort((ids, -similarities), axis=1)[:, :limit]
        best, best_ids = np.take_along_axis(similarities, order, 1), np.take_along_axis(ids, order, 1)
    views = faces_by_id(session, [int(i) for i in np.unique(best_ids)], version.id)
    calibration = None if version.calibration is None else Calibration.model_validate(version.calibration)
    return [_matches(views, ids, similarities, calibration) for ids, similarities in zip(best_ids, best, strict=True)]


def _matches(
    views: dict[int, FaceView], ids: np.ndarray, similarities: np.ndarray, calibration: Calibration | None
) -> tuple[Match, ...]:
    return tuple(
        Match(
            face=views[int(face_id)],
            similarity=float(similarity),
            probability=None if calibration is None else float(calibration.probability(float(similarity))),
        )
        for face_id, similarity in zip(ids, similarities, strict=True)
    )
