"""Indexes that answer by themselves.

A version's vectors are read in order without sorting, members are found without their rows, exemplars by whom they stand
for, an attribute's classes like its numbers.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_embedding_model_version_id"), "embedding")
    op.create_index("ix_embedding_version", "embedding", ["model_version_id", "face_id"])
    op.drop_index(op.f("ix_face_identity_identity_id"), "face_identity")
    op.create_index("ix_face_identity_members", "face_identity", ["identity_id", "face_id", "model_version_id"])
    op.create_index(
        "ix_face_identity_standing",
        "face_identity",
        ["identity_id"],
        sqlite_where=sa.text("exemplar = 1"),
        postgresql_where=sa.text("exemplar"),
    )
    op.drop_index("ix_attribute_name", "attribute")
    op.create_index("ix_attribute_name", "attribute", ["name", "label", "value"])
