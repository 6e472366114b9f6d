"""Which attributes there are, and which faces have one: asked so that a million faces cost no more than a few."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from infra.catalog.sides import by_rows, unindexed
from infra.catalog.tables.schema import Attribute, Face

Clause = ColumnElement[bool]


def names(session: Session) -> list[str]:
    """The attributes that some face has, in order."""
    return _different(session, Attribute.name, ())


def labels(session: Session, name: str) -> list[str]:
    """The classes of an attribute that some face has, in order; none if it is a number."""
    return _different(session, Attribute.label, (Attribute.name == name,))


def _different(session: Session, column: InstrumentedAttribute[str | None], where: Sequence[Clause]) -> list[str]:
    """The values of a column that an index has in order: a step each, however many rows have it."""
    value = select(func.min(column).label("value")).where(*where).cte("value", recursive=True)
    following = select(func.min(column)).where(*where, column > value.c.value).scalar_subquery()
    value = value.union_all(select(following).where(value.c.value.is_not(None)))
    return sorted(session.scalars(select(value.c.value).where(value.c.value.is_not(None))))


def having(session: Session, name: str, *tests: Clause) -> Clause:
    """Faces that some model gave this attribute, so that the tests on its row hold."""
    rows = select(Attribute.face_id).where(Attribute.name == name, *tests)
    return by_rows(session, Face.id, rows, given(session, name, *tests))


def given(session: Session, name: str, *tests: Clause) -> Clause:
    """The same, asked of one face that is at hand."""
    return exists().where(Attribute.face_id == Face.id, unindexed(session, Attribute.name) == name, *tests)
