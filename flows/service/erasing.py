"""Erasure for the service: first what would go, then, once that was seen and the word was typed, its end."""

import hashlib
import json

from sqlalchemy.orm import Session

from flows.service.dto import CertificateOut, PlanOut
from flows.service.orders import ErasureIn, ErasureOrder
from flows.service.problems import Problem, not_found
from flows.service.state import Service
from infra.catalog import photographs
from tasks import erase
from tasks.erase import Plan

WORD = "erase"


def plan(service: Service, asked: ErasureIn) -> PlanOut:
    """What would go."""
    with service.catalog.read() as session:
        return _out(_plan(session, asked))


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
        return erase.plan_faces(session, asked.faces)
    if asked.identity is not None:
        return erase.plan_identity(session, asked.identity)
    image = photographs.photograph(session, asked.image or 0)
    if image is None:
        raise not_found(f"Image {asked.image}")
    return erase.plan_image(session, image.key, image.collection)


def _out(planned: Plan) -> PlanOut:
    content = [planned.kind, sorted(planned.faces), sorted(planned.image_ids)]
    return PlanOut(
        kind=planned.kind,
        faces=list(planned.faces),
        keys=list(planned.keys),
        counts=planned.counts,
        notes=list(planned.notes),
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )
