"""PostgreSQL's indexes over vectors are built with more care: a search then needs to look at fewer faces."""

from alembic import op
from sqlalchemy import text

from infra.catalog.vectors import CONSTRUCTION, has_index, have_build_memory, index_name

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    for version, dimension in connection.execute(text("SELECT id, dimension FROM model_version")).all():
        name = index_name(version)
        if not has_index(connection, version):
            continue
        have_build_memory(connection, version, dimension)
        connection.execute(text(f"ALTER INDEX {name} SET (ef_construction = {CONSTRUCTION})"))
        connection.execute(text(f"REINDEX INDEX {name}"))
