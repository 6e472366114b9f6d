"""Upgrades from one embedding version to another, and faces that a backfill could not embed."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "upgrade",
        sa.Column("id", ID, nullable=False),
        sa.Column("target_id", ID, nullable=False),
        sa.Column("former_id", ID, nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("crop_agreement", sa.Float(), nullable=True),
        sa.Column("faces_per_second", sa.Float(), nullable=True),
        sa.Column("planned_at", TIME, nullable=False),
        sa.Column("worked_at", TIME, nullable=True),
        sa.Column("switched_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("bridge", sa.LargeBinary(), nullable=True),
        sa.Column("bridge_measures", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["target_id"], ["model_version.id"], name=op.f("fk_upgrade_target_id")),
        sa.ForeignKeyConstraint(["former_id"], ["model_version.id"], name=op.f("fk_upgrade_former_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upgrade")),
    )
    op.create_index(op.f("ix_upgrade_target_id"), "upgrade", ["target_id"])
    op.create_index(op.f("ix_upgrade_former_id"), "upgrade", ["former_id"])
    op.create_table(
        "backfill_failure",
        sa.Column("upgrade_id", ID, nullable=False),
        sa.Column("face_id", ID, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upgrade_id"], ["upgrade.id"], name=op.f("fk_backfill_failure_upgrade_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["face_id"], ["face.id"], name=op.f("fk_backfill_failure_face_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("upgrade_id", "face_id", name=op.f("pk_backfill_failure")),
    )
    op.create_index(op.f("ix_backfill_failure_face_id"), "backfill_failure", ["face_id"])
