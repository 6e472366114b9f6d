"""PostgreSQL's indexes over vectors of many dimensions are built with more links, without which searches miss faces."""

from alembic import op
from sqlalchemy import text

from infra.catalog.vectors import WIDE, has_index, have_build_memory, index_name, links_for

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    wide = text("SELECT id, dimension FROM model_version WHERE dimension > :wide")
    for version, dimension in connection.execute(wide, {"wide": WIDE}).all():
        if has_index(connection, version):
            have_build_memory(connection, version, dimension)
            connection.execute(text(f"ALTER INDEX {index_name(version)} SET (m = {links_for(dimension)})"))
            connection.execute(text(f"REINDEX INDEX {index_name(version)}"))
