"""A photo is processed anew, by another detector perhaps: what was known of a face goes to the one found in its place.

Places among people and what people decided follow the box, so that neither a new detector nor another order of the faces
undoes them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Table, delete, exists, insert, or_, select, update
from sqlalchemy.orm import Session

from infra.catalog.boxes import overlaps
from infra.catalog.people_tables import DecidedMove, Statement
from infra.catalog.schema import Face, FaceIdentity

SAME_FACE = 0.5  # intersection over union from which two boxes in one photo are one face


@dataclass(frozen=True)
class Known:
    """Faces of which more is known than the pipeline finds, by photo: {content: (ids (N,), boxes (N, 4))}."""

    faces: dict[int, tuple[np.ndarray, np.ndarray]]


def known(session: Session, contents: Collection[int]) -> Known:
    """The faces of some photos that have a place among people or a decision about them, before the photos are written anew."""
    more = or_(
        exists().where(FaceIdentity.face_id == Face.id),
        exists().where(Statement.face_id == Face.id),
        exists().where(DecidedMove.face_id == Face.id),
    )
    return Known(_boxes(session, Face.content_id.in_(list(contents)), more))


def hand_over(session: Session, before: Known, detector_id: int) -> None:
    """Give what was known of each face to the one that the detector has found in its place; with none there, it is dropped.

    To be called when the new faces are written and the outdated ones are still there.
    """
    if not before.faces:
        return
    now = _boxes(session, Face.content_id.in_(list(before.faces)), Face.detector_id == detector_id)
    heirs: dict[int, int | None] = {}
    for content, (ids, boxes) in before.faces.items():
        heirs.update(dict.fromkeys(ids.tolist()))
        found, places = now.get(content, (np.empty(0, np.int64), np.empty((0, 4))))
        shared = overlaps(boxes, places)
        for pair in np.argsort(-shared, axis=None, kind="stable").tolist():
            old, new = divmod(pair, max(len(found), 1))
            if shared[old, new] < SAME_FACE:
                break
            if heirs[int(ids[old])] is None:
                heirs[int(ids[old])] = int(found[new])
                shared[:, new] = 0  # one heir for each
    _rewrite(session, {old: new for old, new in heirs.items() if old != new})


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
