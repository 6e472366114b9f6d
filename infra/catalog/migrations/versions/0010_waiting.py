"""What grouping has yet to look at, and which photos a backfill has in hand."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_index(
        "ix_face_identity_exemplar",
        "face_identity",
        ["model_version_id", "identity_id"],
        sqlite_where=sa.text("exemplar = 1"),
        postgresql_where=sa.text("exemplar"),
    )
    for column in ("identity_b_id", "face_a_id", "face_b_id"):  # else whoever deletes one of these reads all proposals
        op.create_index(op.f(f"ix_merge_proposal_{column}"), "merge_proposal", [column])
    op.create_table(
        "ungrouped_face",
        sa.Column("model_version_id", ID, nullable=False),
        sa.Column("face_id", ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["face_id", "model_version_id"],
            ["embedding.face_id", "embedding.model_version_id"],
            name=op.f("fk_ungrouped_face_face_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_version_id", "face_id", name=op.f("pk_ungrouped_face")),
    )
    op.create_table(
        "shrunk_identity",
        sa.Column("identity_id", ID, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_shrunk_identity")),
    )
    op.create_table(
        "backfill_claim",
        sa.Column("upgrade_id", ID, nullable=False),
        sa.Column("content_id", ID, nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("claimed_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["upgrade_id"], ["upgrade.id"], name=op.f("fk_backfill_claim_upgrade_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["content_id"], ["content.id"], name=op.f("fk_backfill_claim_content_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("upgrade_id", "content_id", name=op.f("pk_backfill_claim")),
    )
    op.create_index(op.f("ix_backfill_claim_content_id"), "backfill_claim", ["content_id"])
