"""What search needs: a journal of embeddings that changed, and on PostgreSQL pgvector's half-precision vectors."""

import sqlalchemy as sa
from alembic import op

from infra.catalog.search.vectors import create_index, prepare_pgvector

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Little-endian float32 to half precision. What is no such vector (an encrypted one has another length) has no half.
HALF = """
CREATE FUNCTION visage_halfvec(stored bytea) RETURNS halfvec LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE WHEN length(stored) % 4 = 0 THEN ARRAY(
        SELECT ((1 - (get_byte(stored, i + 3) >> 7) * 2)
            * ((128 | (get_byte(stored, i + 2) & 127)) * 65536 + get_byte(stored, i + 1) * 256 + get_byte(stored, i))
            * 2.0::float8 ^ ((get_byte(stored, i + 3) & 127) * 2 + (get_byte(stored, i + 2) >> 7) - 150))::float4
        FROM generate_series(0, length(stored) - 4, 4) AS i ORDER BY i
    )::halfvec END
$$
"""


def upgrade() -> None:
    op.create_table(
        "embedding_change",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model_version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("face_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embedding_change")),
        sqlite_autoincrement=True,
    )
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    prepare_pgvector(connection)
    op.execute(sa.DDL(HALF.replace("%", "%%")))
    op.execute("ALTER TABLE embedding ADD COLUMN half halfvec GENERATED ALWAYS AS (visage_halfvec(vector)) STORED")
    embedders = sa.text("SELECT id, dimension FROM model_version WHERE id IN (SELECT model_version_id FROM embedding)")
    for version_id, dimension in connection.execute(embedders).all():
        create_index(connection, version_id, dimension)
