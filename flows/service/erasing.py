"""Erasure for the service: first what would go, then, once that was seen and the word was typed, its end."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from flows.service.access import Principal
from flows.service.dto import AlikeOut, CertificateOut, PlanOut
from flows.service.orders import ErasureIn, ErasureOrder
from flows.service.problems import Problem, not_found
from flows.service.searching import probe
from flows.service.state import Service
from infra.catalog.custody import audit
from infra.catalog.queries import photographs
from tasks.custody import erase
from tasks.custody.erase import Plan

WORD = "erase"


def plan(service: Service, asked: ErasureIn) -> PlanOut:
    """What would go."""
    with service.catalog.read() as session:
        return _out(_plan(session, asked))


@dataclass(frozen=True)
class Alike:
    """What a photograph's faces have in the catalog, with its size and, for showing, its pixels as the detector saw them."""

    faces: list[AlikeOut]
    width: int
    height: int
    pixels: np.ndarray


def plan_by_photo(service: Service, who: Principal, data: bytes, least: float | None) -> Alike:
    """What erasing each of the people in a photograph would take. It is looked at in memory and not kept.

    Raises:
        Problem: 422 for no bytes; 429 after too many; 503 while too many wait.
        CannotErase: if there is no similarity from which on a face is meant.
        UnreadablePhoto, NothingToSearch, NotInstalled: as searching does.
    """
    with service.catalog.read() as session:
        version, least = erase.meant_from(session, least)
    probed = probe(service, who, data, version)
    with service.catalog.read() as session:
        plans = erase.plan_alike(session, version, probed.vectors, least)
    faces = [
        AlikeOut(
            box=tuple(box),
            score=score,
            least=least,
            similarities={} if planned is None else planned.similarities,
            plan=None if planned is None else _out(planned),
        )
        for box, score, planned in zip(probed.boxes.tolist(), probed.scores.tolist(), plans, strict=True)
    ]
    found = sorted({face for alike in faces for face in alike.similarities})
    with service.catalog.write() as session:
        audit.searched(session, who.name, "service", found, [data], least=least)
    return Alike(faces, probed.width, probed.height, probed.pixels)


def carry_out(service: Service, who: str, order: ErasureOrder) -> CertificateOut:
    """Erase what was seen.

    Raises:
        Problem: 422 for another word; 409 if something else would go by now.
    """
    if order.word.strip().lower() != WORD:
        raise Problem(422, "word", "Nothing was erased", f"Type the word {WORD!r} to erase.")
    with service.catalog.read() as session:
        planned = _plan(session, order)
    if _out(planned).digest != order.digest:
        raise Problem(
            409,
            "plan-changed",
            "Nothing was erased",
            "The catalog has changed since you looked, and something else would go. Look at it again.",
        )
    certificate, _ = erase.erase(service.catalog, service.settings, who, planned, order.reason)
    return CertificateOut.model_validate(certificate)


def _plan(session: Session, asked: ErasureIn) -> Plan:
    if asked.faces is not None:
        return erase.plan_faces(session, asked.faces, "photo" if asked.by == "photo" else "face")
    if asked.identity is not None:
        return erase.plan_identity(session, asked.identity)
    image = photographs.photograph(session, asked.image or 0)
    if image is None:
        raise not_found(f"Image {asked.image}")
    return erase.plan_image(session, image.key, image.collection)


def _out(planned: Plan) -> PlanOut:
    content = [planned.kind, sorted(planned.faces), sorted(planned.image_ids), planned.persons, planned.exhibits]
    return PlanOut(
        kind=planned.kind,
        faces=list(planned.faces),
        keys=list(planned.keys),
        counts=planned.counts,
        exhibits=list(planned.exhibits),
        notes=list(planned.notes),
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )
