"""Search: who looks like this? By faces of the catalog, by photographs that are not kept, or by a person, with filters.

Several faces of one person are asked for together: the nearest are those with the highest mean similarity to them, which is
their mean vector's order. Every answer says how it was found: "exact", or by which approximate index.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sqlalchemy import ColumnElement, Integer, bindparam, not_, select
from sqlalchemy.orm import Session

from infra.asked import AskedWrongly
from infra.catalog.database import Catalog
from infra.catalog.identities import decisions
from infra.catalog.queries.filters import FaceFilter, of_identity
from infra.catalog.queries.views import FaceView, faces_by_id
from infra.catalog.search.neighbours import Neighbours, VectorIndex, nearest_faces
from infra.catalog.tables.schema import UNIT_TOLERANCE, Embedding, Face, FaceIdentity
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.versioning.versions import serving
from infra.catalog.visibility import visible
from infra.settings import Settings
from tasks.calibration import calibration_of
from tasks.probe import NothingToSearch, Probed, Prober, UnreadablePhoto
from tasks.search_index import open_index

MOST_MATCHES = 1_000  # of one answer; more come page by page
MOST_ASKED = 100
MOST_PROBES = 20  # faces of a person that a search by identity asks with: the best ones


class UnknownFace(LookupError):
    """The catalog has no such face or person, or no embedding of it by the version that queries use."""


class InvalidQuery(AskedWrongly):
    """A query that asks for nothing, for two things at once, or goes on from an answer to another question."""


@dataclass(frozen=True)
class Photo:
    """A photograph to search with: its name for messages, its bytes, and which of its faces is meant.

    `face` counts from 1 in the order in which `search_photo` answers; None: the largest one, weighed by the detector's score.
    """

    name: str
    data: bytes = field(repr=False)
    face: int | None = None


@dataclass(frozen=True)
class Query:
    """Whom to look for: faces of the catalog and photographs, all of one person, or a person the catalog knows.

    Faces that are asked with are not among the matches, nor are those of the person. `after` goes on where an answer ended.
    """

    faces: tuple[int, ...] = ()
    photos: tuple[Photo, ...] = ()
    identity_id: int | None = None
    filter: FaceFilter = FaceFilter()  # noqa: RUF009 - it is frozen
    limit: int = 10
    after: str | None = None


@dataclass(frozen=True)
class Match:
    """A face of the catalog that resembles the one looked for. `probability`: of being the same person, at even odds
    beforehand; None while the embedding version is not calibrated."""

    face: FaceView
    similarity: float
    probability: float | None


@dataclass(frozen=True)
class Answer:
    """The matches, most similar first, equal ones by their ids, and how they were found.

    `box` and `score` are of the face in the photograph, or of the first face that was asked with. `asked`: how many faces were
    asked with; similarity is the mean to them. `after`: what a query for the next matches passes on; None after the last.
    """

    box: tuple[float, ...]
    score: float
    matches: tuple[Match, ...]
    model: str
    method: str = "exact"
    asked: int = 1
    after: str | None = None


@dataclass(frozen=True)
class _Asked:
    """Vectors (N, D) to search with, the box and score of the first face, and what is not to be found.

    `photos` are the digests of the photographs asked with, each with the face that is meant.
    """

    vectors: np.ndarray
    box: tuple[float, ...]
    score: float
    photos: tuple[tuple[str, int | None], ...] = ()
    without: tuple[ColumnElement[bool], ...] = ()


def search_faces(catalog: Catalog, settings: Settings, query: Query, prober: Prober | None = None) -> Answer:
    """Find the faces of the catalog that look most like those of the query. Photographs are not kept.

    `prober` keeps its models loaded between searches.

    Raises:
        InvalidQuery, InvalidFilter, UnknownCollection, UnknownFace: naming what does not fit.
        NothingToSearch: if there is no face in a photo, or nothing in the catalog.
        UnreadablePhoto, NotInstalled: as `Prober`.
    """
    _check(query)
    with catalog.read() as session:
        version = serving_version(session)
        query.filter.check(session)
        asked = _asked(session, settings, version, query, prober)
        index = open_index(session, version, settings)
        return _answer(session, index, version, query, asked)


def search_photo(
    session: Session, settings: Settings, photo: Path, limit: int, conditions: FaceFilter | None = None
) -> list[Answer]:
    """Find for every face in a photo the most similar ones of the catalog. The photo is not kept.

    Raises:
        InvalidQuery: for a limit that nobody can ask for.
        InvalidFilter, UnknownCollection: naming the condition that does not fit.
        NothingToSearch: if there is no face in the photo, or nothing in the catalog.
        UnreadablePhoto: if the file is no picture that can be read.
        NotInstalled: if the models that made the catalog are not on this machine.
    """
    version = serving_version(session)
    asked_with = read_photo(photo, settings)
    _check(Query(photos=(asked_with,), limit=limit))
    probed = probe(settings, version, asked_with, None)
    return search_probed(session, settings, version, asked_with, probed, limit, conditions)


def search_probed(
    session: Session,
    settings: Settings,
    version: ModelVersionRow,
    photo: Photo,
    probed: Probed,
    limit: int,
    conditions: FaceFilter | None = None,
) -> list[Answer]:
    """As `search_photo`, for a photo in which a `Prober` has found faces already, by the version that embedded them."""
    conditions = conditions or FaceFilter()
    conditions.check(session)
    index = open_index(session, version, settings)
    query, digest = Query(filter=conditions, limit=limit), _digest(photo)
    answers = []
    for face, (box, score, vector) in enumerate(zip(probed.boxes, probed.scores, probed.vectors, strict=True), start=1):
        asked = _Asked(vector[None], tuple(map(float, box)), float(score), ((digest, face),))
        answers.append(_answer(session, index, version, query, asked))
    return answers


def nearest(
    session: Session,
    version: ModelVersionRow,
    queries: np.ndarray,
    limit: int,
    settings: Settings | None = None,
    conditions: FaceFilter | None = None,
) -> list[tuple[Match, ...]]:
    """The most similar visible faces for each query vector (Q, D), unit length; ties in the order of face ids.

    With `settings`, an index on disk is used and kept.

    Raises:
        ValueError: for queries that are no vectors of this version, among them NaN and zero.
    """
    right = queries.ndim == 2 and queries.shape[1] == version.dimension
    if not (right and (np.abs(np.linalg.norm(queries, axis=1) - 1) <= UNIT_TOLERANCE).all()):  # NaN fails too
        raise ValueError(
            f"queries {queries.shape} must be vectors of {version.dimension} finite numbers and of length 1, as the catalog's "
            "are"
        )
    index = open_index(session, version, settings)
    clauses = [visible(), *(conditions.clauses(session) if conditions else ())]
    found = [nearest_faces(session, index, version.id, query, limit, clauses) for query in queries]
    return [_matches(session, version, neighbours) for neighbours in found]


def serving_version(session: Session) -> ModelVersionRow:
    """The embedding version that queries use.

    Raises:
        NothingToSearch: before the first complete run.
    """
    version = serving(session)
    if version is None:
        raise NothingToSearch("the catalog holds no embeddings yet; 'visage run COLLECTION' makes them")
    return version


def read_photo(path: Path, settings: Settings, face: int | None = None) -> Photo:
    """Read a photograph to search with.

    Raises:
        UnreadablePhoto: if it is larger than the settings allow.
    """
    with path.open("rb") as file:
        data = file.read(settings.max_bytes + 1)
    if len(data) > settings.max_bytes:
        raise UnreadablePhoto(
            f"{path}: larger than {settings.max_bytes:,} bytes, which VISAGE_MAX_BYTES allows at most"
        )
    return Photo(str(path), data, face)


def _check(query: Query) -> None:
    if not 1 <= query.limit <= MOST_MATCHES:
        raise InvalidQuery(f"limit {query.limit}: ask for 1 to {MOST_MATCHES:,} matches; the answer tells how to go on")
    if len(query.faces) + len(query.photos) > MOST_ASKED:
        raise InvalidQuery(f"{len(query.faces) + len(query.photos)} faces at once: ask with at most {MOST_ASKED}")
    if not (query.faces or query.photos or query.identity_id is not None):
        raise InvalidQuery("the query names nobody to look for: a face, a photograph or a person")
    if query.identity_id is not None and (query.faces or query.photos):
        raise InvalidQuery("the query names a person and faces besides; search by one of them")


def _asked(
    session: Session, settings: Settings, version: ModelVersionRow, query: Query, prober: Prober | None
) -> _Asked:
    if query.identity_id is not None:
        faces = _faces_of(session, version, query.identity_id)
        without = not_(of_identity(session, query.identity_id))
    else:
        faces, without = query.faces, Face.id.not_in(query.faces)
    parts: list[np.ndarray] = []
    places: list[tuple[tuple[float, ...], float]] = []
    if faces:
        stored = _stored(session, version, faces)
        parts.append(np.stack([vector for _, vector in stored]))
        first = stored[0][0]
        places.append(((first.x1, first.y1, first.x2, first.y2), first.score))
    prober = prober or Prober(settings)
    for photo in query.photos:
        probed = probe(settings, version, photo, prober)
        place = _place(photo, probed)
        parts.append(probed.vectors[place][None])
        places.append((tuple(map(float, probed.boxes[place])), float(probed.scores[place])))
    box, score = places[0]
    photos = tuple((_digest(photo), photo.face) for photo in query.photos)
    return _Asked(np.concatenate(parts), box, score, photos, (without,) if faces else ())


_STORED = (
    select(Face, Embedding.vector)
    .join(
        Embedding,
        (Embedding.face_id == Face.id) & (Embedding.model_version_id == bindparam("version", type_=Integer)),
    )
    .where(Face.id.in_(bindparam("faces", expanding=True)))
)


def _stored(session: Session, version: ModelVersionRow, faces: Sequence[int]) -> list[tuple[Face, np.ndarray]]:
    """Faces of the catalog with their vectors, in the order of the question."""
    rows = session.execute(_STORED, {"version": version.id, "faces": faces}).tuples()
    found = {face.id: (face, vector) for face, vector in rows}
    missing = sorted(set(faces) - set(found))
    if missing:
        raise UnknownFace(
            f"face {', '.join(map(str, missing))}: not in the catalog, or without an embedding by {version.name}@"
            f"{version.version}; 'visage faces' lists the faces"
        )
    return [found[face] for face in dict.fromkeys(faces)]


def _faces_of(session: Session, version: ModelVersionRow, identity_id: int) -> tuple[int, ...]:
    """The faces that stand for a person best: exemplars, then by quality."""
    identity = None
    with suppress(decisions.UnknownSubject):
        identity = decisions.identity(session, identity_id)
    if identity is None or identity.model_version_id != version.id:
        raise UnknownFace(f"the catalog knows no person {identity_id}; 'visage identities' lists them")
    statement = (
        select(Face.id)
        .join(FaceIdentity, FaceIdentity.face_id == Face.id)
        .where(FaceIdentity.identity_id == identity.id)
        .order_by(FaceIdentity.exemplar.desc(), Face.quality.desc(), Face.id)
        .limit(MOST_PROBES)
    )
    faces = tuple(session.scalars(statement))
    if not faces:
        raise UnknownFace(f"person {identity_id} has no face to search with")
    return faces


def probe(settings: Settings, version: ModelVersionRow, photo: Photo, prober: Prober | None = None) -> Probed:
    """Find and embed the faces in a photograph.

    Raises:
        UnreadablePhoto, NothingToSearch: naming the photograph.
        NotInstalled: if the version is not on this machine.
    """
    try:
        return (prober or Prober(settings))(photo.data, version)
    except (UnreadablePhoto, NothingToSearch) as error:
        raise type(error)(f"{photo.name}: {error}") from error


def _place(photo: Photo, probed: Probed) -> int:
    if photo.face is None:
        sides = probed.boxes[:, 2:] - probed.boxes[:, :2]
        return int(np.argmax(sides.prod(axis=1) * probed.scores))
    if not 1 <= photo.face <= len(probed.boxes):
        raise InvalidQuery(f"{photo.name}: there is no face {photo.face}; {len(probed.boxes)} were found")
    return photo.face - 1


def _answer(session: Session, index: VectorIndex, version: ModelVersionRow, query: Query, asked: _Asked) -> Answer:
    mean = asked.vectors.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    if length < UNIT_TOLERANCE:
        raise InvalidQuery("the faces asked with have nothing in common: their mean vector is zero")
    question = _question(version, query, asked)
    after, seen = _continued(query, question)
    clauses = [visible(), *query.filter.clauses(session), *asked.without]
    found = nearest_faces(session, index, version.id, mean / length, query.limit + 1, clauses, after, seen)
    more = len(found.ids) > query.limit
    found = Neighbours(found.ids[: query.limit], found.similarities[: query.limit], found.method)
    return Answer(
        asked.box,
        asked.score,
        _matches(session, version, found, scale=length),
        f"{version.name}@{version.version}",
        found.method,
        len(asked.vectors),
        _cursor(question, found, seen) if more else None,
    )


def _matches(session: Session, version: ModelVersionRow, found: Neighbours, scale: float = 1.0) -> tuple[Match, ...]:
    """Matches with similarities times `scale`: the length of the mean vector makes them means of similarities."""
    views = faces_by_id(session, found.ids.tolist(), version.id)
    calibration = calibration_of(version)
    similarities = np.clip(found.similarities * scale, -1, 1)
    return tuple(
        Match(views[face], similarity, None if calibration is None else float(calibration.probability(similarity)))
        for face, similarity in zip(found.ids.tolist(), similarities.tolist(), strict=True)
    )


def _digest(photo: Photo) -> str:
    return hashlib.sha256(photo.data).hexdigest()


def _question(version: ModelVersionRow, query: Query, asked: _Asked) -> str:
    """What an answer belongs to: a query for more of it must ask the same."""
    told = json.dumps([version.contract, query.faces, asked.photos, query.identity_id, query.filter.canonical()])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _cursor(question: str, found: Neighbours, seen: int) -> str:
    place = [question, float(found.similarities[-1]).hex(), int(found.ids[-1]), seen + len(found.ids)]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _continued(query: Query, question: str) -> tuple[tuple[float, int] | None, int]:
    """Similarity and id of the last face seen, and how many were."""
    if query.after is None:
        return None, 0
    try:
        asked, similarity, face, seen = json.loads(base64.urlsafe_b64decode(query.after.encode()))
        place = (float.fromhex(similarity), int(face))
        count = int(seen)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidQuery(f"{query.after!r} is no place in an answer; pass on what the last one gave") from error
    if asked != question or count < 0:
        raise InvalidQuery("this place belongs to the answer to another question; ask the same again, or begin anew")
    return place, count
