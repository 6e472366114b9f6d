"""PostgreSQL's indexes over vectors of many dimensions are built with more links, without which searches miss faces."""

from alembic import op

from infra.catalog.search.vectors import build_outdated_anew

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    build_outdated_anew(op.get_bind())
