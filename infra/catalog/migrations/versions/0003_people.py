"""Decisions about people, erasure, audit log, retention."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _people()
    _custody()
    _columns()
    _append_only()


def _people() -> None:
    op.create_table(
        "person",
        sa.Column("id", Id, nullable=False),
        sa.Column("root_id", Id, nullable=True),
        sa.Column("merged_into_id", Id, nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("ignored", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_person")),
    )
    op.create_index(op.f("ix_person_root_id"), "person", ["root_id"])
    op.create_table(
        "decision",
        sa.Column("id", Id, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("person_id", Id, nullable=True),
        sa.Column("other_id", Id, nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undone_by", sa.Text(), nullable=True),
        sa.Column("ended_by_id", Id, nullable=True),
        sa.ForeignKeyConstraint(["other_id"], ["person.id"], name=op.f("fk_decision_other_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_decision_person_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
    )
    for column in ("ended_by_id", "other_id", "person_id"):
        op.create_index(op.f(f"ix_decision_{column}"), "decision", [column])
    op.create_table(
        "statement",
        sa.Column("id", Id, nullable=False),
        sa.Column("decision_id", Id, nullable=False),
        sa.Column("face_id", Id, nullable=False),
        sa.Column("person_id", Id, nullable=True),
        sa.Column("says", sa.Text(), nullable=False),
        sa.Column("ended_by_id", Id, nullable=True),
        sa.ForeignKeyConstraint(
            ["decision_id"], ["decision.id"], name=op.f("fk_statement_decision_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["face_id"], ["face.id"], name=op.f("fk_statement_face_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_statement_person_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_statement")),
    )
    for columns in (["face_id", "says"], ["person_id", "says"], ["decision_id"], ["ended_by_id"]):
        op.create_index(op.f(f"ix_statement_{columns[0]}"), "statement", columns)
    op.create_table(
        "decided_move",
        sa.Column("decision_id", Id, nullable=False),
        sa.Column("face_id", Id, nullable=False),
        sa.Column("model_version_id", Id, nullable=False),
        sa.Column("former_identity_id", Id, nullable=True),
        sa.ForeignKeyConstraint(
            ["decision_id"], ["decision.id"], name=op.f("fk_decided_move_decision_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["face_id"], ["face.id"], name=op.f("fk_decided_move_face_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_version.id"], name=op.f("fk_decided_move_model_version_id")
        ),
        sa.PrimaryKeyConstraint("decision_id", "face_id", "model_version_id", name=op.f("pk_decided_move")),
    )
    op.create_index(op.f("ix_decided_move_face_id"), "decided_move", ["face_id"])


def _custody() -> None:
    op.create_table(
        "secret",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secret")),
    )
    op.create_table(
        "audit_entry",
        sa.Column("id", Id, nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.JSON(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
        sa.UniqueConstraint("previous", name=op.f("uq_audit_entry_previous")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", Id, nullable=False),
        sa.Column("erasure_id", Id, nullable=False),
        sa.Column("errand", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["erasure_id"], ["erasure.id"], name=op.f("fk_outbox_erasure_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(op.f("ix_outbox_erasure_id"), "outbox", ["erasure_id"])
    op.create_table(
        "suppression",
        sa.Column("id", Id, nullable=False),
        sa.Column("collection_id", Id, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("box", sa.JSON(), nullable=True),
        sa.Column("erasure_id", Id, nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_suppression_collection_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["erasure_id"], ["erasure.id"], name=op.f("fk_suppression_erasure_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_suppression")),
    )
    for column in ("digest", "erasure_id"):
        op.create_index(op.f(f"ix_suppression_{column}"), "suppression", [column])
    op.create_table(
        "exhibit",
        sa.Column("id", Id, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("errand", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("collection_id", Id, nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_exhibit_collection_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exhibit")),
    )
    op.create_index(op.f("ix_exhibit_collection_id"), "exhibit", ["collection_id"])


def _columns() -> None:
    for name, kind in (("legal_basis", sa.Text()), ("consent_note", sa.Text()), ("retention_days", sa.Integer())):
        op.add_column("collection", sa.Column(name, kind, nullable=True))
    # When an old face was found is not known: its retention begins today.
    today = sa.text(f"'{datetime.now(UTC):%Y-%m-%d %H:%M:%S}{'+00' if _postgresql() else ''}'")
    op.add_column("face", sa.Column("found_at", sa.DateTime(timezone=True), nullable=False, server_default=today))
    op.add_column("face", sa.Column("embeddings_expired_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("erasure", sa.Column("who", sa.Text(), nullable=False, server_default=""))
    op.add_column("identity", sa.Column("person_id", Id, nullable=True))
    op.create_index(op.f("ix_identity_person_id"), "identity", ["person_id"])


def _append_only() -> None:
    if _postgresql():
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_entry_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entry "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_entry_no_{change.lower()} BEFORE {change} ON audit_entry "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def _postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
