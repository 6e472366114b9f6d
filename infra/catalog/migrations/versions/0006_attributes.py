"""Attributes of every type: what the value is, vectors, and masks as objects; an index to ask by name and value."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# What earlier releases stored: categories with their classes, ages, poses; everything else was a probability.
KIND, UNIT = (
    f"CASE WHEN label IS NOT NULL THEN '{category}' WHEN name LIKE 'age%' THEN 'years' "
    f"WHEN name IN ('pitch', 'yaw', 'roll') THEN 'degrees' ELSE '{probability}' END"
    for category, probability in (("category", "probability"), ("class", "0..1"))
)


def upgrade() -> None:
    """Keep all rows."""
    with op.batch_alter_table("attribute") as table:
        table.add_column(sa.Column("kind", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("unit", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("vector", sa.LargeBinary(), nullable=True))
        table.add_column(sa.Column("mask_key", sa.Text(), nullable=True))
        table.alter_column("value", existing_type=sa.Float(), nullable=True)
    op.execute(f"UPDATE attribute SET kind = {KIND}, unit = {UNIT}")
    with op.batch_alter_table("attribute") as table:
        table.alter_column("kind", existing_type=sa.Text(), server_default=None)
        table.alter_column("unit", existing_type=sa.Text(), server_default=None)
        table.create_index("ix_attribute_name", ["name", "value"])
