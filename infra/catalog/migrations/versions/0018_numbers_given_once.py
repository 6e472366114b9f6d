"""Numbers of rows are given once: SQLite remembers the highest of each table, and what was told of rows that are gone counts.

SQLite takes AUTOINCREMENT in a new table only. So every table with numbers is made anew and its rows are copied.
"""

import json
import re

import sqlalchemy as sa
from alembic import op

from infra.catalog import numbers

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TOLD = (  # where the numbers of rows stay that may be gone
    ("schedule", "run", "schedule_id"),
    ("image", "content", "owner_image_id"),
    ("face", "embedding_change", "face_id"),
    ("identity", "identity", "id"),  # PostgreSQL did not give them
    ("identity", "decided_move", "former_identity_id"),
)
AUDITED = {"faces": "face", "found": "face", "identity": "identity"}  # in the subjects of the audit log's entries
BY_NUMBER = re.compile(
    r"CREATE TABLE \"?(\w+)\"? \(\s*id INTEGER NOT NULL(,.*), \s*CONSTRAINT \w+ PRIMARY KEY \(id\)(.*)", re.DOTALL
)


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        _remember(connection)
    for table, teller, column in TOLD:
        highest = connection.scalar(sa.text(f"SELECT max({column}) FROM {teller}"))
        numbers.go_on_after(connection, table, highest or 0)
    for table, highest in _audited(connection).items():
        numbers.go_on_after(connection, table, highest)


def _remember(connection: sa.Connection) -> None:
    """Make the tables anew.

    Raises:
        RuntimeError: where dropping a table would take along the rows that refer to it.
    """
    if connection.scalar(sa.text("PRAGMA foreign_keys")):
        raise RuntimeError(
            "tables cannot be made anew while SQLite enforces foreign keys (infra.catalog.database.upgrade)"
        )
    made = "SELECT sql FROM sqlite_master WHERE type = 'table' AND sql LIKE '%PRIMARY KEY (id)%'"
    for statement in connection.scalars(sa.text(made)).all():
        found = BY_NUMBER.fullmatch(statement)
        assert found is not None, statement
        table, columns, constraints = found.groups()
        belongings = "SELECT sql FROM sqlite_master WHERE tbl_name = :table AND type <> 'table' AND sql IS NOT NULL"
        again = connection.scalars(sa.text(belongings), {"table": table}).all()
        for step in (
            f"CREATE TABLE anew (\n\tid INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT{columns}{constraints}",
            f"INSERT INTO anew SELECT * FROM {table}",
            f"DROP TABLE {table}",
            f"ALTER TABLE anew RENAME TO {table}",
            *again,  # indexes and triggers
        ):
            connection.exec_driver_sql(step)


def _audited(connection: sa.Connection) -> dict[str, int]:
    """The highest numbers that the audit log tells, by table."""
    highest: dict[str, int] = {}
    for subject in connection.scalars(sa.text("SELECT subject FROM audit_entry")):
        told = json.loads(subject) if isinstance(subject, str) else subject
        for name, table in AUDITED.items():
            value = told.get(name) or 0
            highest[table] = max([highest.get(table, 0), *(value if isinstance(value, list) else [value])])
    return highest
