"""Images remember which content they held before a broken or rewritten file, until its faces have found their successors."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("image", sa.Column("former_content_id", kind, nullable=True))
    op.create_index(op.f("ix_image_former_content_id"), "image", ["former_content_id"])
