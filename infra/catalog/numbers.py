"""Numbers of rows, each of which is given once: who wrote one down, in the audit log or on paper, means that row for ever.

A row that is entered without a number gets the next one: of PostgreSQL's sequence, or of what SQLite keeps for each table
(AUTOINCREMENT). What is here is for rows that are entered under a number, and for what is to count on elsewhere.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text


def last_given(connection: Connection, table: str) -> int:
    """The highest number that a table has given, whether its row is there or not; 0 before the first."""
    if connection.dialect.name == "postgresql":
        last = "SELECT pg_sequence_last_value(pg_get_serial_sequence(:table, 'id'))"
    else:
        last = "SELECT seq FROM sqlite_sequence WHERE name = :table"
    return connection.scalar(text(last), {"table": table}) or 0


def go_on_after(connection: Connection, table: str, number: int) -> None:
    """Let a table give higher numbers only. In PostgreSQL, nobody else may be entering rows into it meanwhile."""
    if number <= last_given(connection, table):
        return
    values = {"table": table, "number": number}
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :number)"), values)
    else:  # which makes no row for a table before its first
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :table"), values)
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :number)"), values)


def take(connection: Connection, table: str, count: int) -> Sequence[int]:
    """Take the next numbers of a table, for rows to be entered under them."""
    if connection.dialect.name == "postgresql":
        each = "SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :count)"
        return connection.scalars(text(each), {"table": table, "count": count}).all()
    last = last_given(connection, table)
    go_on_after(connection, table, last + count)
    return range(last + 1, last + count + 1)
