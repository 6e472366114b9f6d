"""Two opinions on one face: where model versions agree on an attribute, and the faces on which they disagree most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from infra.catalog.queries import attributes
from infra.catalog.queries.views import AttributeView, attribute_view
from infra.catalog.tables.schema import Attribute, Collection, Content, Face, Image, ImageStatus, ModelVersion


class UnknownAttribute(LookupError):
    """No face of the catalog has such an attribute."""


@dataclass(frozen=True)
class Agreement:
    """How two versions judge the same faces. Of classes: the share of equal ones. Of numbers: their mean distance."""

    first: str
    second: str
    faces: int
    unit: str
    same_class: float | None
    mean_difference: float | None


@dataclass(frozen=True)
class Disagreement:
    """A face with what every version says of it; `difference` as the list is ordered by."""

    face_id: int
    keys: tuple[str, ...]
    difference: float
    opinions: tuple[AttributeView, ...]


@dataclass(frozen=True)
class Opinions:
    """All that versions say of some attributes: who agrees with whom, and on which faces they differ most."""

    agreements: tuple[Agreement, ...]
    disagreements: tuple[Disagreement, ...]


A, B = aliased(Attribute, name="a"), aliased(Attribute, name="b")
BY_CLASS = A.label.is_not(None)
# Two classes differ as surely as the less sure of both; of numbers it is their distance.
DIFFERENCE = case(
    (BY_CLASS & (A.label == B.label), 0.0),
    (BY_CLASS, func.coalesce(A.confidence, 1.0) * func.coalesce(B.confidence, 1.0)),
    else_=func.abs(A.value - B.value),
)


def opinions(session: Session, names: Sequence[str], collection: str | None, limit: int) -> Opinions:
    """Compare what different versions, or heads of one version, say under these names; vectors and masks are left out.

    Raises:
        UnknownAttribute: naming those that there are.
    """
    known = attributes.names(session)
    if missing := [name for name in names if name not in known]:
        raise UnknownAttribute(
            f"no face has {', '.join(missing)}; the catalog knows {', '.join(known) or 'no attribute yet'}"
        )
    pairs = _pairs(names, collection)
    models = {row.id: f"{row.name}@{row.version}" for row in session.scalars(select(ModelVersion))}
    return Opinions(
        agreements=tuple(_agreements(session, pairs, models, several=len(names) > 1)),
        disagreements=tuple(_disagreements(session, pairs, names, models, limit)),
    )


def _pairs(names: Sequence[str], collection: str | None) -> Select[tuple[Attribute, Attribute]]:
    """Two opinions on one face of a photo that is still there, each pair once, of the same unit."""
    here = exists().where(Image.content_id == Content.id, Image.status != ImageStatus.MISSING.value)
    later = or_(B.model_version_id > A.model_version_id, (B.model_version_id == A.model_version_id) & (B.name > A.name))
    pairs = (
        select(A, B)
        .join(B, (B.face_id == A.face_id) & (B.unit == A.unit) & later)
        .join(Face, Face.id == A.face_id)
        .join(Content, Content.id == Face.content_id)
        .where(A.name.in_(names), B.name.in_(names), A.value.is_not(None), B.value.is_not(None), here)
    )
    if collection is not None:
        pairs = pairs.join(Collection, Collection.id == Content.collection_id).where(Collection.name == collection)
    return pairs


def _agreements(
    session: Session, pairs: Select[tuple[Attribute, Attribute]], models: dict[int, str], several: bool
) -> list[Agreement]:
    who = (A.model_version_id, A.name, B.model_version_id, B.name, A.unit)
    same = func.avg(case((BY_CLASS & (A.label == B.label), 1.0), (BY_CLASS, 0.0)))
    apart = func.avg(case((~BY_CLASS, func.abs(A.value - B.value))))
    rows = session.execute(pairs.with_only_columns(*who, func.count(), same, apart).group_by(*who).order_by(*who))

    def called(version: int, name: str) -> str:
        return f"{models[version]} {name}" if several else models[version]

    return [
        Agreement(called(first, name_1), called(second, name_2), faces, unit, _number(equal), _number(distance))
        for first, name_1, second, name_2, unit, faces, equal, distance in rows.tuples()
    ]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # PostgreSQL's averages are decimals


def _disagreements(
    session: Session,
    pairs: Select[tuple[Attribute, Attribute]],
    names: Sequence[str],
    models: dict[int, str],
    limit: int,
) -> list[Disagreement]:
    worst = func.max(DIFFERENCE)
    rows = session.execute(
        pairs.with_only_columns(A.face_id, worst)
        .group_by(A.face_id)
        .having(worst > 0)
        .order_by(worst.desc(), A.face_id)
        .limit(limit)
    ).tuples()
    differences = dict(rows.all())
    found: dict[int, list[AttributeView]] = {}
    said = select(Attribute).where(Attribute.face_id.in_(differences), Attribute.name.in_(names))
    for row in session.scalars(said.order_by(Attribute.model_version_id, Attribute.name)):
        found.setdefault(row.face_id, []).append(attribute_view(row, models[row.model_version_id]))
    keys: dict[int, list[str]] = {}
    images = select(Face.id, Image.key).join(Image, Image.content_id == Face.content_id).order_by(Image.key)
    there = Face.id.in_(differences), Image.status != ImageStatus.MISSING.value
    for face_id, key in session.execute(images.where(*there)).tuples():
        keys.setdefault(face_id, []).append(key)
    return [
        Disagreement(face_id, tuple(keys.get(face_id, ())), difference, tuple(found[face_id]))
        for face_id, difference in differences.items()
    ]
