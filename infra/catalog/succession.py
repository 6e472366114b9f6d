"""A photo is processed anew, by another detector perhaps: what was known of a face goes to the one found in its place.

Places among people, what people decided and retention follow the box, so that neither a new detector nor another order of the
faces undoes them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Table, delete, insert, select, update
from sqlalchemy.orm import Session

from infra.catalog.boxes import overlaps
from infra.catalog.people_tables import DecidedMove, Statement
from infra.catalog.schema import Embedding, Face, FaceIdentity

SAME_FACE = 0.5  # intersection over union from which two boxes in one photo are one face


@dataclass(frozen=True)
class Known:
    """The faces of some photos, {content: (ids (N,), boxes (N, 4))}, and when each was found and its embeddings expired."""

    faces: dict[int, tuple[np.ndarray, np.ndarray]]
    times: dict[int, tuple[datetime, datetime | None]]


def known(session: Session, contents: Collection[int]) -> Known:
    """The faces of some photos, before these are written anew."""
    of_photos = Face.content_id.in_(list(contents))
    times = session.execute(select(Face.id, Face.found_at, Face.embeddings_expired_at).where(of_photos)).tuples()
    return Known(_boxes(session, of_photos), {face: (found, expired) for face, found, expired in times})


def hand_over(session: Session, before: Known, written: Collection[int]) -> None:
    """Give what was known of each face to the one now found in its place; with none there, it is dropped.

    To be called when the new faces are `written` and the outdated ones are still there, and before vectors are written.
    """
    now = _boxes(session, Face.id.in_(list(written)))
    heirs: dict[int, int | None] = {}
    forebears: dict[int, int] = {}
    for content, (ids, boxes) in before.faces.items():
        heirs.update(dict.fromkeys(ids.tolist()))
        found, places = now.get(content, (np.empty(0, np.int64), np.empty((0, 4))))
        shared = overlaps(boxes, places)
        for pair in np.argsort(-shared, axis=None, kind="stable").tolist():
            row, column = divmod(pair, len(found))
            if shared[row, column] < SAME_FACE:
                break
            old, new = int(ids[row]), int(found[column])
            if heirs[old] is None and new not in forebears:  # one heir for each
                heirs[old], forebears[new] = new, old
    _rewrite(session, {old: new for old, new in heirs.items() if old != new})
    _keep_times(session, before, forebears, now)
    others = [face for face in written if face in before.times and forebears.get(face) != face]
    session.execute(delete(Embedding).where(Embedding.face_id.in_(others)))  # of whoever had the number before


def _keep_times(
    session: Session, before: Known, forebears: dict[int, int], now: dict[int, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Let retention go on as if nothing was processed anew; a face not known before counts as found with the photo's first."""
    times: dict[int, tuple[datetime, datetime | None]] = {}
    for content, (ids, _) in now.items():
        if content in before.faces:
            first = min(before.times[face][0] for face in before.faces[content][0].tolist())
            times |= {face: before.times.get(forebears.get(face, 0), (first, None)) for face in ids.tolist()}
    changed = [
        {"id": face, "found_at": found, "embeddings_expired_at": expired}
        for face, (found, expired) in times.items()
        if (found, expired) != before.times.get(face)
    ]
    if changed:
        session.execute(update(Face), changed)


def _boxes(session: Session, *conditions: Any) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    rows = session.execute(
        select(Face.content_id, Face.id, Face.x1, Face.y1, Face.x2, Face.y2).where(*conditions).order_by(Face.id)
    ).all()
    found: dict[int, list[Any]] = {}
    for content, *rest in rows:
        found.setdefault(content, []).append(rest)
    return {
        content: (np.array([row[0] for row in of_one], np.int64), np.array([row[1:] for row in of_one], np.float64))
        for content, of_one in found.items()
    }


def _rewrite(session: Session, heirs: dict[int, int | None]) -> None:
    if not heirs:
        return
    for entity in (FaceIdentity, DecidedMove):
        table = entity.__table__
        assert isinstance(table, Table)
        rows = session.execute(select(table).where(table.c.face_id.in_(heirs))).mappings().all()
        session.execute(delete(table).where(table.c.face_id.in_([*heirs, *(h for h in heirs.values() if h)])))
        moved = [{**row, "face_id": heir} for row in rows if (heir := heirs[row["face_id"]]) is not None]
        if moved:
            session.execute(insert(table), moved)
    statements = session.execute(select(Statement.id, Statement.face_id).where(Statement.face_id.in_(heirs))).tuples()
    for statement, face in statements.all():
        heir = heirs[face]
        change = (
            delete(Statement).where(Statement.id == statement)
            if heir is None
            else update(Statement).where(Statement.id == statement).values(face_id=heir)
        )
        session.execute(change.execution_options(synchronize_session=False))
    session.expire_all()
