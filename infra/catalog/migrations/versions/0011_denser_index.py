"""PostgreSQL's indexes over vectors are built with more care: a search then needs to look at fewer faces."""

from alembic import op
from sqlalchemy import text

from infra.catalog.vectors import BUILD_MEMORY, CONSTRUCTION

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    connection.execute(text(f"SET LOCAL maintenance_work_mem = '{BUILD_MEMORY}'"))
    for name in connection.scalars(text("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'ix_embedding_half_%'")):
        connection.execute(text(f"ALTER INDEX {name} SET (ef_construction = {CONSTRUCTION})"))
        connection.execute(text(f"REINDEX INDEX {name}"))
