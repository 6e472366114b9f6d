"""Which embedding version the queries use."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import Face, ModelVersion
from infra.catalog.versioning import upgrades

_SERVING = select(ModelVersion).where(ModelVersion.serving)


def serving(session: Session) -> ModelVersion | None:
    """The embedding version that queries use; None before the first complete run."""
    return session.scalar(_SERVING)


def serving_id(session: Session) -> int | None:
    """The row id of that version."""
    return session.scalar(select(ModelVersion.id).where(ModelVersion.serving))


def serve_when_complete(session: Session, model_version_id: int) -> bool:
    """Let queries use this version from now on, if every face that they can find has an embedding of it."""
    exclusive(session, upgrades.SERVING)
    lacking = select(Face.id).where(upgrades.lacks(model_version_id), upgrades.visible())
    if session.scalar(lacking.limit(1)) is not None:
        return False
    served = serving_id(session)
    if served != model_version_id:
        if served is not None:
            upgrades.end(session)
        upgrades.serve(session, model_version_id)
    return True
