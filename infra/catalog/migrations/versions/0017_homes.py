"""Homes: which machines hold content of the catalog outside of it, so that an erasure reaches them all."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "home",
        sa.Column("id", kind, nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_home")),
        sa.UniqueConstraint("token", name=op.f("uq_home_token")),
    )
    op.create_table(
        "holding",
        sa.Column("id", kind, nullable=False),
        sa.Column("home_id", kind, nullable=True),
        sa.Column("keeps", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["home_id"], ["home.id"], name=op.f("fk_holding_home_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holding")),
    )
    op.create_index(op.f("ix_holding_home_id"), "holding", ["home_id"])
    for table in ("outbox", "exhibit"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("holding_id", kind, nullable=True))
            batch.create_foreign_key(
                op.f(f"fk_{table}_holding_id"), "holding", ["holding_id"], ["id"], ondelete="CASCADE"
            )
            batch.create_index(op.f(f"ix_{table}_holding_id"), ["holding_id"])
