"""Schedules, shared collections, leases of runs, and since when an image waits."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "schedule",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("collection_id", ID, nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("catch_up", sa.Boolean(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("active_since", TIME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_schedule_collection_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule")),
        sa.UniqueConstraint("name", name=op.f("uq_schedule_name")),
    )
    op.create_index(op.f("ix_schedule_collection_id"), "schedule", ["collection_id"])
    op.create_table(
        "split",
        sa.Column("collection_id", ID, nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("boundaries", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_split_collection_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("collection_id", "parts", name=op.f("pk_split")),
    )
    # Plain ALTER TABLE: Alembic's batch mode would rebuild the tables, and take with it what refers to their rows.
    for column in (
        sa.Column("after_key", KEY, nullable=True),
        sa.Column("through_key", KEY, nullable=True),
        sa.Column("schedule_id", ID, nullable=True),
        sa.Column("slot", TIME, nullable=True),
        sa.Column("heartbeat_at", TIME, nullable=True),
        sa.Column("reported_at", TIME, nullable=True),
    ):
        op.add_column("run", column)
    not_crashed = sa.text("status <> 'crashed'")
    op.create_index(
        "uq_run_slot",
        "run",
        ["schedule_id", "slot"],
        unique=True,
        sqlite_where=not_crashed,
        postgresql_where=not_crashed,
    )
    op.add_column("image", sa.Column("pending_since", TIME, nullable=True))
