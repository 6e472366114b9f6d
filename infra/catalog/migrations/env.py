"""Alembic's entrance: run the migrations on the connection that `infra.catalog.database.upgrade` hands over."""

from typing import Any, Literal

from alembic import context

from infra.catalog.tables.schema import Base, UtcDateTime, Vector


def _render(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """A migration must not change when our types do: write down what they are made of."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, Vector):
        return "sa.LargeBinary()"
    return False


def _ours(_: Any, name: str | None, kind: str, reflected: bool, counterpart: Any) -> bool:
    """Leave out what only PostgreSQL has, and makes for itself: half-precision vectors and the indexes over them."""
    return not (
        reflected and counterpart is None and name is not None and name.startswith(("half", "ix_embedding_half_"))
    )


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    render_item=_render,
    include_object=_ours,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
