"""PostgreSQL's indexes over vectors are built with more care: a search then needs to look at fewer faces."""

from alembic import op

from infra.catalog.search.vectors import build_outdated_anew

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    build_outdated_anew(op.get_bind())
