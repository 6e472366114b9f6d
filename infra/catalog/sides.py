"""Conditions that rows of another table decide can be asked from either side; this chooses the one that is quick.

PostgreSQL finds that out by its statistics. SQLite has none that say how many rows have one value, so it is counted, as far as
needed. A page of an answer then costs about the same among a million as among a thousand.
"""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, Text, UnaryExpression, func, select, type_coerce
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.operators import custom_op

T = TypeVar("T")

FEW = 5_000  # rows that are gathered in some milliseconds; where more fulfil a condition, a page is soon full, too


def by_rows(
    session: Session,
    key: SQLColumnExpression[int] | SQLColumnExpression[int | None],
    rows: Select[tuple[int]] | Select[tuple[int | None]],
    each: ColumnElement[bool],
) -> ColumnElement[bool]:
    """That `key` is among `rows`, if they are few: nothing else is looked at then. Else `each`, the same asked of one."""
    if not _on_sqlite(session):
        return each
    few = session.scalar(select(func.count()).select_from(rows.limit(FEW + 1).subquery())) or 0
    return key.in_(rows) if few <= FEW else each


def by_index(
    session: Session,
    key: InstrumentedAttribute[int],
    column: InstrumentedAttribute[T],
    test: Callable[[SQLColumnExpression[T]], ColumnElement[bool]],
) -> ColumnElement[bool]:
    """A condition on a column of the row with this key: by the column's index only if few rows fulfil it."""
    return by_rows(session, key, select(key).where(test(column)), test(unindexed(session, column)))


def unindexed(session: Session, column: InstrumentedAttribute[T]) -> SQLColumnExpression[T]:
    """The column, for a condition that must choose no index. SQLite takes "+" for that.

    By an index over collections, rows that are walked by their ids would be sorted for every page; by one over attributes'
    names, those of all faces would be read for every face.
    """
    if not _on_sqlite(session):
        return column
    return UnaryExpression(column.expression, operator=custom_op("+"), type_=column.type)


def in_letters(session: Session, column: InstrumentedAttribute[str]) -> SQLColumnExpression[str]:
    """A key as text in which capitals can be looked past: PostgreSQL, which compares keys by bytes, knows only A to Z there."""
    return column if _on_sqlite(session) else type_coerce(column, Text).collate("default")


def _on_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
