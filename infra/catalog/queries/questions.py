"""Questions about many faces: which they are, how they are distributed, and which pictures are there more than once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Select,
    SQLColumnExpression,
    case,
    cast,
    func,
    literal,
    literal_column,
    nulls_last,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import Integer, Text

from infra.catalog.queries import attributes
from infra.catalog.queries.language import SENSITIVE, InvalidQuestion, clause
from infra.catalog.queries.views import FaceView, faces_by_id
from infra.catalog.sides import unindexed
from infra.catalog.tables.schema import Attribute, Collection, Content, Face, FaceIdentity, Identity, Image, ImageStatus
from infra.catalog.versioning.versions import serving

STEPS = 10  # in which numbers of a wide range are counted; those in 0..1 in tenths
Counted = Select[tuple[Any, int]]
BITS, BANDS = 64, 4  # of a perceptual hash
BLOCK = 256  # hashes that are compared at once with all that have a part in common: memory, not time
NEAR = BANDS - 1  # bits: pictures that differ in no more have one of BANDS parts in common, and so are all found


@dataclass(frozen=True)
class Count:
    """How many faces there are of a kind; None: of no known one."""

    value: str | None
    faces: int


@dataclass(frozen=True)
class Copies:
    """Photos of a collection that show the same: `distance` of 64 bits at most, 0 for the very same bytes."""

    collection: str
    keys: tuple[str, ...]
    distance: int
    same_bytes: bool


def ask(session: Session, question: str, limit: int, after: int = 0) -> list[FaceView]:
    """The faces that a question means, in the order of their ids, from the first after `after` on.

    Raises:
        InvalidQuestion: if it cannot be read.
    """
    version = serving(session)
    wanted = select(Face.id).where(clause(session, question), Face.id > after).order_by(Face.id).limit(limit)
    ids = list(session.scalars(wanted))
    found = faces_by_id(session, ids, None if version is None else version.id)
    return [found[face_id] for face_id in ids]


def count_by(session: Session, question: str, by: str) -> list[Count]:
    """Count the faces that a question means, by `taken` or `found` (-year, -month or -day), `collection`, `person`, `quality`,
    or an attribute: classes by name, numbers in steps. A face counts once for each model that speaks of it.

    Raises:
        InvalidQuestion: if one of both cannot be read.
    """
    meant = select(Face.id).where(clause(session, question))
    kind, _, part = by.partition("-")
    if kind in _COUNTS and part in _COUNTS[kind][1]:
        statement = _COUNTS[kind][0](session, part)
    elif by in (names := attributes.names(session)):
        statement = _by_attribute(session, by)
    else:
        there = [name + (f"-{p}" if p else "") for name, (_, parts) in _COUNTS.items() for p in parts] + names
        raise InvalidQuestion(f"faces cannot be counted by {by!r}; they can by {', '.join(there)}. {SENSITIVE}")
    rows = session.execute(
        statement.where(Face.id.in_(meant)).group_by("counted").order_by(nulls_last(literal_column("counted")))
    ).tuples()
    return [Count(None if value is None else str(value), number) for value, number in rows]


def _select(value: SQLColumnExpression[Any]) -> Counted:
    return select(value.label("counted"), func.count(Face.id.distinct())).select_from(Face)


def _by_taken(session: Session, part: str) -> Counted:
    day = func.substr(Content.taken_at, 1, {"year": 4, "month": 7, "day": 10}[part])
    return _select(day).join(Content, Content.id == Face.content_id)


def _by_found(session: Session, part: str) -> Counted:
    moment: ColumnElement[str] = cast(Face.found_at, Text)
    if session.get_bind().dialect.name == "postgresql":
        moment = func.to_char(func.timezone("UTC", Face.found_at), "YYYY-MM-DD")
    return _select(func.substr(moment, 1, {"year": 4, "month": 7, "day": 10}[part]))


def _by_collection(session: Session, part: str) -> Counted:
    statement = _select(Collection.name).join(Content, Content.id == Face.content_id)
    return statement.join(Collection, Collection.id == Content.collection_id)


def _by_person(session: Session, part: str) -> Counted:
    version = serving(session)
    member = (FaceIdentity.face_id == Face.id) & (FaceIdentity.model_version_id == (version.id if version else -1))
    named = case((Identity.name.is_not(None), Identity.name), else_=literal("person ", Text) + cast(Identity.id, Text))
    value = case((Identity.id.is_(None), None), else_=named)
    return _select(value).outerjoin(FaceIdentity, member).outerjoin(Identity, Identity.id == FaceIdentity.identity_id)


def _by_quality(session: Session, part: str) -> Counted:
    return _select(_stepped(Face.quality, tenths=True))


def _by_attribute(session: Session, name: str) -> Counted:
    given = (Attribute.face_id == Face.id) & (unindexed(session, Attribute.name) == name)
    if attributes.labels(session, name):
        return _select(Attribute.label).outerjoin(Attribute, given)
    least, most = session.execute(
        select(func.min(Attribute.value), func.max(Attribute.value)).where(Attribute.name == name)
    ).one()
    if least is None:
        raise InvalidQuestion(f"{name} is no single value that could be counted")
    return _select(_stepped(Attribute.value, tenths=least >= 0 and most <= 1)).outerjoin(Attribute, given)


def _stepped(column: SQLColumnExpression[Any], tenths: bool) -> ColumnElement[Any]:
    """The lower end of the step that a number lies in: 0.0, 0.1, ... or ..., 0, 10, 20, ..."""
    return (
        cast(func.floor(column * 10), Integer) / 10.0 if tenths else cast(func.floor(column / STEPS), Integer) * STEPS
    )


_COUNTS: dict[str, tuple[Callable[[Session, str], Counted], tuple[str, ...]]] = {
    "taken": (_by_taken, ("year", "month", "day")),
    "found": (_by_found, ("year", "month", "day")),
    "collection": (_by_collection, ("",)),
    "person": (_by_person, ("",)),
    "quality": (_by_quality, ("",)),
}


def duplicates(session: Session, collection_id: int, near: int | None = None) -> list[Copies]:
    """Photos of a collection that are there more than once: with the same bytes, or, up to `near` bits, that look the same.

    Raises:
        InvalidQuestion: if `near` is not in 0..3, up to which all are found.
    """
    if near is not None and not 0 <= near <= NEAR:
        raise InvalidQuestion(f"pictures can be compared up to 0 to {NEAR} of {BITS} bits, not {near}")
    rows = session.execute(
        select(Content.id, Content.perceptual_hash, Image.key, Collection.name)
        .join(Image, Image.content_id == Content.id)
        .join(Collection, Collection.id == Content.collection_id)
        .where(Content.collection_id == collection_id, Image.status != ImageStatus.MISSING.value)
        .order_by(Content.id, Image.key)
    ).all()
    keys: dict[int, list[str]] = {}
    hashes: dict[int, int] = {}
    for content_id, hashed, key, _ in rows:
        keys.setdefault(content_id, []).append(key)
        if hashed is not None:
            hashes[content_id] = int(hashed, 16)
    name = rows[0][3] if rows else ""
    if near is None:
        return [Copies(name, tuple(found), 0, True) for found in keys.values() if len(found) > 1]
    unhashed = [([content], 0) for content in keys if content not in hashes]
    groups = sorted(_alike(hashes, near) + unhashed)
    return [
        Copies(name, tuple(sorted(key for member in members for key in keys[member])), distance, len(members) == 1)
        for members, distance in groups
        if sum(len(keys[member]) for member in members) > 1
    ]


def _alike(hashes: dict[int, int], near: int) -> list[tuple[list[int], int]]:
    """Groups of contents that hang together by pairs of at most `near` bits, with the largest distance of such a pair."""
    from scipy.sparse import coo_array  # noqa: PLC0415 - slow to import, and only copies need it
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    values, which = np.unique(np.array(list(hashes.values()), np.uint64), return_inverse=True)
    one, other = _near_pairs(values, near)
    pairs = coo_array((np.ones(len(one), bool), (one, other)), (len(values), len(values)))
    number, group = connected_components(pairs, directed=False)
    farthest = np.zeros(number, np.int64)
    np.maximum.at(farthest, group[one], np.bitwise_count(values[one] ^ values[other]))
    members: dict[int, list[int]] = {}
    for content, root in zip(hashes, group[which].tolist(), strict=True):
        members.setdefault(root, []).append(content)
    return [(found, int(farthest[root])) for root, found in members.items()]


def _near_pairs(values: NDArray[np.uint64], near: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of all pairs of different hashes at most `near` bits apart: these have one of BANDS parts in common."""
    found = [np.empty((0, 2), np.int64)]
    width = BITS // BANDS
    for band in range(BANDS if near else 0):
        part = (values >> np.uint64(band * width)) & np.uint64(2**width - 1)
        order = np.argsort(part, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            for start in range(0, len(bucket) if len(bucket) > 1 else 0, BLOCK):
                block = bucket[start : start + BLOCK]
                distances = np.bitwise_count(values[block][:, None] ^ values[bucket[start:]])
                row, column = np.nonzero(np.triu(distances <= near, 1))
                found.append(np.stack([block[row], bucket[start:][column]], 1))
    one, other = np.concatenate(found).T
    return one, other
