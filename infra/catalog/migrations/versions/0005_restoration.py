"""Judged restorations: sharpness, overflows, and which embeddings were made from restored pixels."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is known of what was restored before: its sharpness stays empty. No embedding was of restored pixels."""
    with op.batch_alter_table("restoration", schema=None) as batch_op:
        batch_op.add_column(sa.Column("photo_sharpness", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("sharpness", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("repeated_in_float32", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("embedding", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("restorer_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True)
        )
        batch_op.create_foreign_key(op.f("fk_embedding_restorer_id"), "model_version", ["restorer_id"], ["id"])
