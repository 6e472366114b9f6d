"""Rows from another catalog under numbers of this one: a numbered row gets a new number, and all that refer to it follow."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.orm import Session

from infra.catalog import numbers
from infra.catalog.exchange.portable import Carried

REMEMBERED = frozenset({"run", "image"})  # of which a row may be gone while others still tell its number


class DanglingReference(ValueError):
    """A row refers to one that did not come along; the message names both."""


class Renumbering:
    """What numbers of another catalog are here, by table. To be used in one writing transaction.

    `instead` says what stands here for a remembered row that did not come along.
    """

    def __init__(self, session: Session, instead: dict[str, int]) -> None:
        self.session = session
        self.numbers: dict[str, dict[int, int]] = {}
        self._instead = instead

    def are(self, table: str, here: dict[int, int]) -> None:
        """Rows that are here already stand for some of another catalog."""
        self.numbers[table] = here

    def reserve(self, table: Table, elsewhere: Iterable[int]) -> None:
        """Give new numbers to rows of a table, in the same order."""
        old = sorted(set(elsewhere))
        new = numbers.take(self.session.connection(), table.name, len(old))
        self.numbers[table.name] = dict(zip(old, new, strict=True))

    def translated(self, carried: Carried, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the numbers that they and those they refer to have here.

        Raises:
            DanglingReference: if one refers to a row that did not come along.
        """
        own = {"id": carried.name} if "id" in carried.table.columns else {}
        references = (carried.refers | own).items()
        return [
            row | {column: self._here(carried, column, to, row.get(column)) for column, to in references}
            for row in rows
        ]

    def _here(self, carried: Carried, column: str, table: str, number: int | None) -> int | None:
        if number is None:
            return None
        here = self.numbers[table].get(number)
        if here is None and table in REMEMBERED and not carried.table.columns[column].foreign_keys:
            return self._instead[table] if number else 0
        if here is None:
            raise DanglingReference(f"a row of {carried.name} refers to {table} {number}, which is not there")
        return here
