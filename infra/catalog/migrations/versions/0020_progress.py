"""How far a run has got is counted from an index of what it has finished."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    finished = sa.text("status IN ('done', 'failed')")
    op.create_index(
        "ix_image_finished", "image", ["run_id", "status"], sqlite_where=finished, postgresql_where=finished
    )
