"""What a night leaves, in a form that can be compared however it came about: no ids, no times, no order of arrival."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, select

from infra.catalog.database import Catalog
from infra.catalog.faces import crop_keys
from infra.catalog.tables.schema import (
    Attribute,
    Content,
    Embedding,
    Face,
    FaceIdentity,
    Failure,
    Image,
    ModelVersion,
    Restoration,
    Run,
)
from infra.settings import Settings
from infra.storage import open_store

PIXELS, UNITS = 1e-2, 1e-3  # what another composition of batches may change in boxes, and in vectors, scores, estimates
MISSING = "missing"


@dataclass(frozen=True)
class Left:
    """Rows by table, each a key and numbers; what is left of photos that are gone from the collection does not count."""

    exact: dict[str, Any]
    numbers: dict[str, dict[Any, np.ndarray]]
    runs: list[str]
    problems: list[str]

    def differences(self, other: "Left") -> list[str]:
        """Say where two differ."""
        found = [
            f"{name}: {_short(value)} against {_short(other.exact[name])}"
            for name, value in self.exact.items()
            if value != other.exact[name]
        ]
        for name, rows in self.numbers.items():
            theirs = other.numbers[name]
            if rows.keys() != theirs.keys():
                found.append(f"{name}: {sorted(rows.keys() ^ theirs.keys())} only on one side")
                continue
            limit = PIXELS if name == "boxes" else UNITS
            found += [
                f"{name} of {key}: off by {np.abs(values - theirs[key]).max():.2g}"
                for key, values in rows.items()
                if values.shape != theirs[key].shape or np.abs(values - theirs[key]).max() > limit
            ]
        return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 2000 else text[:2000] + " ..."


def left(settings: Settings) -> Left:
    """Read a home's catalog and its objects."""
    catalog = Catalog(settings.catalog_url)
    store = open_store(settings.crops_uri, settings.storage_options)
    objects = {entry.key for page in store.list() for entry in page} if _exists(settings) else set()
    with catalog.read() as session:
        images = session.execute(
            select(Image.key, Image.status, Image.size, Image.retryable, Content.sha256)
            .outerjoin(Content, Content.id == Image.content_id)
            .where(Image.status != MISSING)
            .order_by(Image.key)
        ).tuples()
        failures = session.execute(
            select(Failure.key, Failure.stage, Failure.reason, Failure.message, Failure.retryable)
            .join(Image, Image.id == Failure.image_id)
            .where(Failure.resolved_at.is_(None), Image.status != MISSING)
            .distinct()
            .order_by(Failure.key)
        ).tuples()
        here = select(Image.content_id).where(Image.status != MISSING)
        faces = session.execute(
            select(Face, Content.sha256).join(Content, Content.id == Face.content_id).where(Face.content_id.in_(here))
        ).tuples()
        names = {face.id: (sha256, face.ordinal) for face, sha256 in faces}
        rows = {face.id: face for face in session.scalars(select(Face).where(Face.id.in_(names)))}
        vectors = session.execute(
            select(Embedding.face_id, ModelVersion.name, Embedding.vector).join(
                ModelVersion, ModelVersion.id == Embedding.model_version_id
            )
        ).tuples()
        attributes = list(session.scalars(select(Attribute).where(Attribute.face_id.in_(names))))
        restored = list(session.scalars(select(Restoration).where(Restoration.face_id.in_(names))))
        people: dict[int | None, set[Any]] = defaultdict(set)
        for identity, face_id in session.execute(select(FaceIdentity.identity_id, FaceIdentity.face_id)).tuples():
            if face_id in names:
                people[identity].add(names[face_id])
        exact = {
            "images": list(images),
            "failures": list(failures),
            "crops": {names[i]: face.crop_key for i, face in rows.items()},
            "people": sorted(sorted(group) for group in people.values()),
            "labels": {(*names[a.face_id], a.name): a.label for a in attributes},
            "restored crops": {names[r.face_id]: (r.crop_key, r.accepted) for r in restored},
        }
        numbers = {
            "boxes": {names[i]: np.array([f.x1, f.y1, f.x2, f.y2, *f.landmarks]) for i, f in rows.items()},
            "scores": {names[i]: np.array([f.score, f.quality]) for i, f in rows.items()},
            "vectors": {(*names[i], model): vector for i, model, vector in vectors if i in names},
            "attributes": {(*names[a.face_id], a.name): np.array([a.value]) for a in attributes if a.label is not None},
        }
        referred = crop_keys(session, session.scalars(select(Content.id)))
        unheld = session.scalar(
            select(func.count(Content.id)).where(~select(Image.id).where(Image.content_id == Content.id).exists())
        )
        bare = session.scalar(
            select(func.count(Face.id)).where(~select(Embedding.face_id).where(Embedding.face_id == Face.id).exists())
        )
        runs = list(session.scalars(select(Run.status).order_by(Run.id)))
    catalog.close()
    problems = {
        "orphaned objects": sorted(objects - referred),
        "crops without object": sorted(referred - objects),
        "contents that no image holds": unheld,
        "faces without embedding": bare,
    }
    return Left(exact, numbers, runs, [f"{name}: {what}" for name, what in problems.items() if what])


def _exists(settings: Settings) -> bool:
    return settings.crops_uri.startswith("s3:") or (settings.home_folder / "objects").exists()
