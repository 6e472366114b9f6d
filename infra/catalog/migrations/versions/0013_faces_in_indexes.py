"""Indexes that name the face as well: a version's vectors are read without sorting, exemplars found without their rows."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_embedding_model_version_id"), "embedding")
    op.create_index("ix_embedding_version", "embedding", ["model_version_id", "face_id"])
    op.drop_index("ix_face_identity_exemplar", "face_identity")
    op.create_index(
        "ix_face_identity_exemplar",
        "face_identity",
        ["model_version_id", "identity_id", "face_id"],
        sqlite_where=sa.text("exemplar = 1"),
        postgresql_where=sa.text("exemplar"),
    )
