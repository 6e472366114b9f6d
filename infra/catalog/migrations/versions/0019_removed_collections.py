"""A removed collection leaves its number, and with it the hashes of what was erased from it."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("collection", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
