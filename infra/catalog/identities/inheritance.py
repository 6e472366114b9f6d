"""A photo is processed anew, by another detector perhaps: what was known of a face goes to the one found in its place.

Places among people, what people decided and retention follow the box, so that neither a new detector nor another order of the
faces undoes them. They follow it into other bytes too, if these show the same picture: saved again, made smaller, with a
keyword.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Row, delete, exists, func, insert, not_, or_, select, update
from sqlalchemy.orm import Session

from infra.catalog.boxes import overlaps
from infra.catalog.chunks import chunks
from infra.catalog.statements import table_of, upsert
from infra.catalog.tables.people import DecidedMove, Statement
from infra.catalog.tables.schema import Content, Face, FaceIdentity, Image, ImageStatus

SAME_FACE = 0.5  # intersection over union from which two boxes in one photo are one face
# Bits in which the perceptual hashes of one picture may differ. Twenty photographs saved again, at a third of the size or at
# JPEG quality 20, differ in 2 at most; two of them in 20 and more.
SAME_PICTURE = 3
NO_FACES = np.empty(0, np.int64), np.empty((0, 4))


@dataclass(frozen=True)
class Known:
    """The faces of some photos, {content: (ids (N,), boxes (N, 4))}, and when each was found and its embeddings expired."""

    faces: dict[int, tuple[np.ndarray, np.ndarray]]
    times: dict[int, tuple[datetime, datetime | None]]


def known(session: Session, contents: Collection[int]) -> Known:
    """The faces of some photos, before these are written anew."""
    rows = _rows(session, Face.content_id.in_(list(contents)))
    return Known(_by_photo(rows), {row.id: (row.found_at, row.embeddings_expired_at) for row in rows})


def keep_numbers(session: Session, before: Known, detector_id: int, found: Mapping[int, np.ndarray]) -> None:
    """Let faces that a detector finds again, by {content: boxes (N, 4)}, keep their numbers, in whatever order it finds them.

    To be called before they are written, which goes by their order. Those that it finds no more come behind the others.
    """
    its_own = Face.content_id.in_(list(before.faces)), Face.detector_id == detector_id
    order = dict(session.execute(select(Face.id, Face.ordinal).where(*its_own)).tuples().all())
    moved: dict[int, int] = {}
    for content, (ids, boxes) in before.faces.items():
        mine = np.isin(ids, list(order))
        places = _in_their_places(ids[mine], boxes[mine], np.arange(len(found[content])), found[content])
        behind = count(len(found[content]))
        moved |= {face: places[face] if face in places else next(behind) for face in ids[mine].tolist()}
    changed = [{"id": face, "ordinal": place} for face, place in moved.items() if place != order[face]]
    if changed:  # out of each other's way first
        rows = update(Face).where(Face.id.in_([row["id"] for row in changed])).values(ordinal=-1 - Face.ordinal)
        session.execute(rows.execution_options(synchronize_session=False))
        session.execute(update(Face), changed)


def hand_over(session: Session, before: Known, written: Collection[int]) -> None:
    """Give what was known of each face to the one now found in its place; with none there, it is dropped.

    To be called when the new faces are `written` and the outdated ones are still there, and before vectors are written.
    """
    now = _boxes(session, Face.id.in_(list(written)))
    heirs: dict[int, int | None] = {}
    forebears: dict[int, int] = {}
    for content, (ids, boxes) in before.faces.items():
        successors = _in_their_places(ids, boxes, *now.get(content, NO_FACES))
        heirs |= dict.fromkeys(ids.tolist()) | successors
        forebears |= {new: old for old, new in successors.items()}
    _rewrite(session, {old: new for old, new in heirs.items() if old != new})
    _keep_times(session, before, forebears, now)


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


def succeed(session: Session, collection_id: int) -> None:
    """Let faces of photos that were written anew inherit from those that were in their places, if the picture is the same.

    The faces before keep what they have: another photo may still hold the same bytes. Photos that cannot be processed wait.
    """
    renewed = select(Image.id, Image.content_id, Image.former_content_id).where(
        Image.collection_id == collection_id,
        Image.former_content_id.is_not(None),
        Image.status == ImageStatus.DONE.value,
    )
    rows = session.execute(renewed.with_for_update()).tuples()  # a run beside this one may be about to do the same
    contents = {image: (now, before) for image, now, before in rows if now and before}
    for part in chunks(contents):
        _inherit(session, {contents[image] for image in part})
        session.execute(update(Image).where(Image.id.in_(part)).values(former_content_id=None))


def _inherit(session: Session, pairs: Collection[tuple[int, int]]) -> None:
    """Copy what is known of faces, by (content, the one before it), to those about whom nobody has decided anything yet.

    Several photos may be the same bytes now. Of the faces that were in one place, the one decided about last leaves all to the
    face there.
    """
    involved = {content for pair in pairs for content in pair}
    photos = {c.id: c for c in session.scalars(select(Content).where(Content.id.in_(involved)))}
    scales = {
        (now, before): scale
        for now, before in sorted(pairs)
        if now != before and before in photos and (scale := _scale(photos[before], photos[now])) is not None
    }
    undecided = not_(exists().where(Statement.face_id == Face.id))
    old_ones = _rows(session, Face.content_id.in_({before for _, before in scales}))
    new_ones = _rows(session, Face.content_id.in_({now for now, _ in scales}), undecided)
    former, renewed = _by_photo(old_ones), _by_photo(new_ones)
    heirs: list[tuple[int, int]] = []
    for (now, before), scale in scales.items():
        old, places = former.get(before, NO_FACES)
        successors = _in_their_places(old, places * scale, *renewed.get(now, NO_FACES))
        heirs += [(new, face) for face, new in successors.items()]
    found = {row.id: row.found_at for row in (*old_ones, *new_ones)}
    first = {new: found[new] for new, _ in heirs}
    for new, face in heirs:
        first[new] = min(first[new], found[face])
    if first:  # from when retention counts
        session.execute(update(Face), [{"id": new, "found_at": at} for new, at in first.items()])
    forebears = {old for _, old in heirs}
    noted = set(session.scalars(select(Face.id).where(Face.id.in_(forebears), _more_is_known())))
    last_said = select(Statement.face_id, func.max(Statement.id)).where(Statement.face_id.in_(noted))
    said = dict(session.execute(last_said.group_by(Statement.face_id)).tuples().all())
    known = [(new, old) for new, old in heirs if old in noted]
    _copy(session, dict(sorted(known, key=lambda heir: said.get(heir[1], 0))))


def _more_is_known() -> ColumnElement[bool]:
    """That a face has a place among people, or that somebody has decided about it."""
    return or_(*(exists().where(entity.face_id == Face.id) for entity in (FaceIdentity, Statement, DecidedMove)))


def _scale(before: Content, now: Content) -> np.ndarray | None:
    """By what boxes (N, 4) in one photo become those in another that shows the same picture; None if it does not."""
    if not (before.width and before.height and before.perceptual_hash and now.width and now.height):
        return None
    # The sides of a picture that was made smaller are whole pixels.
    proportions = abs(now.width * before.height - now.height * before.width) <= before.width + before.height
    differing = (int(before.perceptual_hash, 16) ^ int(now.perceptual_hash or "0", 16)).bit_count()
    if not proportions or differing > SAME_PICTURE:
        return None
    return np.tile([now.width / before.width, now.height / before.height], 2)


def _in_their_places(old: np.ndarray, places: np.ndarray, new: np.ndarray, boxes: np.ndarray) -> dict[int, int]:
    """Which of the new faces (M,) lies in the place of each old one (N,), the best pairs first; each has one."""
    shared = overlaps(places, boxes)
    pairs: dict[int, int] = {}
    for pair in np.argsort(-shared, axis=None, kind="stable").tolist():
        row, column = divmod(pair, len(new))
        if shared[row, column] < SAME_FACE:
            break
        if int(old[row]) not in pairs and int(new[column]) not in pairs.values():
            pairs[int(old[row])] = int(new[column])
    return pairs


def _boxes(session: Session, *conditions: Any) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return _by_photo(_rows(session, *conditions))


def _rows(session: Session, *conditions: Any) -> Sequence[Row[Any]]:
    columns = Face.content_id, Face.id, Face.x1, Face.y1, Face.x2, Face.y2, Face.found_at, Face.embeddings_expired_at
    return session.execute(select(*columns).where(*conditions).order_by(Face.id)).all()


def _by_photo(rows: Sequence[Row[Any]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    by_photo: dict[int, list[Row[Any]]] = {}
    for row in rows:
        by_photo.setdefault(row.content_id, []).append(row)
    return {
        content: (
            np.array([row.id for row in found], np.int64),
            np.array([[row.x1, row.y1, row.x2, row.y2] for row in found]),
        )
        for content, found in by_photo.items()
    }


def _rewrite(session: Session, heirs: dict[int, int | None]) -> None:
    if not heirs:
        return
    for entity in (FaceIdentity, DecidedMove):
        table = table_of(entity)
        told = select(table).where(table.c.face_id.in_(heirs))
        rows = session.execute(told.with_for_update()).mappings().all()  # after a grouping that is moving them
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


def _copy(session: Session, heirs: Mapping[int, int]) -> None:
    """Give faces, by {face: the one before it}, all that is known of those before; their places so far are given up."""
    if not heirs:
        return
    session.execute(
        delete(FaceIdentity).where(FaceIdentity.face_id.in_(heirs)).execution_options(synchronize_session=False)
    )
    for entity in (FaceIdentity, DecidedMove, Statement):
        table = table_of(entity)
        columns = [column for column in table.columns if column.name != "id"]
        rows = session.execute(select(*columns).where(table.c.face_id.in_(heirs.values()))).mappings()
        by_face: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            by_face.setdefault(row["face_id"], []).append(dict(row))
        copies = [{**row, "face_id": face} for face, before in heirs.items() for row in by_face.get(before, ())]
        # A decision that moved both and was undone has left this one a note of its own of where it was.
        upsert(session, entity, copies, table.primary_key.columns.keys(), [])
