"""Search for the service: by a face of the catalog, or by a photograph that is not kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from flows.service.access import Principal
from flows.service.dto import AnswerOut, MatchOut
from flows.service.problems import Problem, not_found
from flows.service.state import Service
from infra.catalog import audit
from infra.catalog.schema import Embedding, Face, ModelVersion
from infra.catalog.versions import serving


def by_face(service: Service, who: Principal, face_id: int, limit: int) -> AnswerOut:
    """The faces that look most like one of the catalog, itself left out."""
    from tasks.search import nearest  # noqa: PLC0415 - imports torch

    with service.catalog.read() as session:
        version = _version(session)
        row = session.execute(
            select(Face, Embedding.vector)
            .join(Embedding, (Embedding.face_id == Face.id) & (Embedding.model_version_id == version.id))
            .where(Face.id == face_id)
        ).one_or_none()
        if row is None:
            raise not_found(f"Face {face_id}")
        face, vector = row
        [matches] = nearest(session, version, np.stack([vector]), limit + 1)
        box, score = (face.x1, face.y1, face.x2, face.y2), face.score
    others = [match for match in matches if match.face.face_id != face_id][:limit]
    with service.catalog.write() as session:
        audit.searched(session, who.name, "service", [m.face.face_id for m in others], faces=[face_id], limit=limit)
    return _answer(box, score, others, version)


@dataclass(frozen=True)
class Found:
    """The matches of every face in a photograph, with its size and, for showing, its pixels as the detector saw them."""

    answers: list[AnswerOut]
    width: int
    height: int
    pixels: np.ndarray


def by_photo(service: Service, who: Principal, data: bytes, limit: int) -> Found:
    """Look for everybody in a photograph. Nothing of it is kept."""
    service.searches.take(who.name)
    from tasks.search import nearest  # noqa: PLC0415 - imports torch

    if not data:
        raise Problem(
            422, "unreadable-photo", "This is no picture that can be read", "The file has 0 bytes: send another."
        )
    with service.catalog.read() as session:
        version = _version(session)
    probed = service.prober(data, version)
    with service.catalog.read() as session:
        found = nearest(session, version, probed.vectors, limit)
    seen = [match.face.face_id for matches in found for match in matches]
    with service.catalog.write() as session:
        audit.searched(session, who.name, "service", seen, [data], limit=limit)
    answers = [
        _answer(box, score, matches, version)
        for box, score, matches in zip(probed.boxes, probed.scores, found, strict=True)
    ]
    return Found(answers, probed.width, probed.height, probed.pixels)


def _version(session: Session) -> ModelVersion:
    version = serving(session)
    if version is None:
        raise Problem(
            422,
            "nothing-to-search",
            "There is nothing to search",
            "The catalog holds no embeddings yet: 'visage run COLLECTION' makes them.",
        )
    return version


def _answer(box: Sequence[float], score: float, matches: Sequence[object], version: ModelVersion) -> AnswerOut:
    from flows.service.api.faces import face_out  # noqa: PLC0415 - which imports this module

    x1, y1, x2, y2 = (float(v) for v in box)
    return AnswerOut(
        box=(x1, y1, x2, y2),
        score=float(score),
        matches=[
            MatchOut(face=face_out(m.face), similarity=m.similarity, probability=m.probability)  # type: ignore[attr-defined]
            for m in matches
        ],
        model=f"{version.name}@{version.version}",
        method="exact",
    )
