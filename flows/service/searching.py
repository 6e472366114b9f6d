"""Search for the service: by a face of the catalog, or by a photograph that is not kept. Each is noted in the audit log."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flows.service.access import Principal
from flows.service.dto import AnswerOut, MatchOut
from flows.service.faces import face_out
from flows.service.problems import RETRY_SECONDS, UNAVAILABLE, Problem
from flows.service.state import PROBES, Service
from infra.catalog.custody import audit
from infra.catalog.tables.schema import ModelVersion
from tasks.search import Answer, Photo, Query, search_faces, search_probed, serving_version

if TYPE_CHECKING:
    from tasks.probe import Probed


@dataclass(frozen=True)
class Found:
    """The matches of every face in a photograph, with its size and, for showing, its pixels as the detector saw them."""

    answers: list[AnswerOut]
    width: int
    height: int
    pixels: np.ndarray


def by_face(service: Service, who: Principal, face_id: int, limit: int) -> AnswerOut:
    """The faces that look most like one of the catalog, itself left out."""
    answer = search_faces(service.catalog, service.settings, Query(faces=(face_id,), limit=limit))
    with service.catalog.write() as session:
        audit.searched(
            session, who.name, "service", [m.face.face_id for m in answer.matches], faces=[face_id], limit=limit
        )
    return answer_out(answer)


def by_photo(service: Service, who: Principal, data: bytes, limit: int) -> Found:
    """Look for everybody in a photograph. Nothing of it is kept."""
    with service.catalog.read() as session:
        version = serving_version(session)
    probed = probe(service, who, data, version)
    with service.catalog.read() as session:
        answers = search_probed(session, service.settings, version, Photo("the photograph", data), probed, limit)
    ids = [match.face.face_id for answer in answers for match in answer.matches]
    with service.catalog.write() as session:
        audit.searched(session, who.name, "service", ids, [data], limit=limit)
    return Found([answer_out(answer) for answer in answers], probed.width, probed.height, probed.pixels)


def probe(service: Service, who: Principal, data: bytes, version: ModelVersion) -> "Probed":
    """The faces of a photograph. Nothing of it is kept.

    Raises:
        Problem: 422 for no bytes; 429 after too many; 503 while too many wait.
        UnreadablePhoto, NothingToSearch, NotInstalled: as the prober does.
    """
    service.searches.take(who.name)
    if not data:
        raise Problem(
            422, "unreadable-photo", "This is no picture that can be read", "The file has 0 bytes: send another."
        )
    if not service.probes.acquire(blocking=False):
        raise Problem(
            UNAVAILABLE,
            "busy",
            "Others are searching",
            f"{PROBES} photographs are being looked at or wait for it. Send yours again in {RETRY_SECONDS} s.",
            headers={"Retry-After": RETRY_SECONDS},
        )
    try:
        return service.probe(data, version)
    finally:
        service.probes.release()


def answer_out(answer: Answer) -> AnswerOut:
    """An answer as the API gives it."""
    x1, y1, x2, y2 = answer.box
    return AnswerOut(
        box=(x1, y1, x2, y2),
        score=answer.score,
        matches=[
            MatchOut(face=face_out(match.face), similarity=match.similarity, probability=match.probability)
            for match in answer.matches
        ],
        model=answer.model,
        method=answer.method,
    )
