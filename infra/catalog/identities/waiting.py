"""What grouping has yet to look at: faces without a place, and identities that a face has left.

Triggers of the database keep both, whoever writes, so that a night's grouping costs what is new and not what is there. Both
could be found by passing over all faces; that happens once, after each migration.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

PLACED = (
    "EXISTS (SELECT 1 FROM face_identity p WHERE p.face_id = {0}.face_id AND p.model_version_id = {0}.model_version_id)"
)


@dataclass(frozen=True)
class _Trigger:
    """What the database does after an event on a table's row, in words that SQLite and PostgreSQL both know."""

    name: str
    table: str
    event: str
    does: str
    when: str = ""


TRIGGERS = (
    _Trigger(
        "embedding_ungrouped", "embedding", "INSERT",
        "INSERT INTO ungrouped_face (model_version_id, face_id) SELECT NEW.model_version_id, NEW.face_id "
        f"WHERE NOT {PLACED.format('NEW')} ON CONFLICT DO NOTHING",
    ),
    _Trigger(
        "face_placed", "face_identity", "INSERT",
        "DELETE FROM ungrouped_face WHERE model_version_id = NEW.model_version_id AND face_id = NEW.face_id",
    ),
    _Trigger(
        "face_displaced", "face_identity", "DELETE",
        "INSERT INTO ungrouped_face (model_version_id, face_id) SELECT e.model_version_id, e.face_id FROM embedding e "
        "WHERE e.face_id = OLD.face_id AND e.model_version_id = OLD.model_version_id ON CONFLICT DO NOTHING",
    ),
    _Trigger(
        "identity_left", "face_identity", "DELETE",
        "INSERT INTO shrunk_identity (identity_id) VALUES (OLD.identity_id) ON CONFLICT DO NOTHING",
        when="OLD.identity_id IS NOT NULL",
    ),
    _Trigger(
        "identity_changed", "face_identity", "UPDATE OF identity_id",
        "INSERT INTO shrunk_identity (identity_id) VALUES (OLD.identity_id) ON CONFLICT DO NOTHING",
        when="OLD.identity_id <> NEW.identity_id OR NEW.identity_id IS NULL AND OLD.identity_id IS NOT NULL",
    ),
)  # fmt: skip

FOUND = (
    "INSERT INTO ungrouped_face (model_version_id, face_id) SELECT e.model_version_id, e.face_id FROM embedding e "
    f"WHERE NOT {PLACED.format('e')} ON CONFLICT DO NOTHING",
    "INSERT INTO shrunk_identity (identity_id) SELECT i.id FROM identity i "
    "WHERE NOT EXISTS (SELECT 1 FROM face_identity m WHERE m.identity_id = i.id) ON CONFLICT DO NOTHING",
)


def keep(connection: Connection) -> None:
    """Have the database keep both from now on, and find what there is. Rebuilding a table in SQLite drops its triggers."""
    make = _in_sqlite if connection.dialect.name == "sqlite" else _in_postgresql
    for trigger in TRIGGERS:
        for statement in make(trigger):
            connection.exec_driver_sql(statement)
    for statement in FOUND:
        connection.exec_driver_sql(statement)


def _in_sqlite(trigger: _Trigger) -> tuple[str, ...]:
    when = f" WHEN {trigger.when}" if trigger.when else ""
    head = f"CREATE TRIGGER IF NOT EXISTS {trigger.name} AFTER {trigger.event} ON {trigger.table}"
    return (f"{head}{when} BEGIN {trigger.does}; END",)


def _in_postgresql(trigger: _Trigger) -> tuple[str, ...]:
    when, function = f" WHEN ({trigger.when})" if trigger.when else "", f"visage_{trigger.name}"
    return (
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {trigger.does}; RETURN NULL; END $$",
        f"DROP TRIGGER IF EXISTS {trigger.name} ON {trigger.table}",
        f"CREATE TRIGGER {trigger.name} AFTER {trigger.event} ON {trigger.table} "
        f"FOR EACH ROW{when} EXECUTE FUNCTION {function}()",
    )
