"""Which embedding version the queries use."""

from sqlalchemy import exists, not_, select, update
from sqlalchemy.orm import Session

from infra.catalog.database import exclusive
from infra.catalog.schema import Embedding, Face, ModelVersion


def serving(session: Session) -> ModelVersion | None:
    """The embedding version that queries use; None before the first complete run."""
    return session.scalar(select(ModelVersion).where(ModelVersion.serving))


def serve_when_complete(session: Session, model_version_id: int) -> bool:
    """Let queries use this version from now on, if every face of the catalog has an embedding of it."""
    exclusive(session, "serving")
    embedded = exists().where(Embedding.face_id == Face.id, Embedding.model_version_id == model_version_id)
    lacking = select(Face.id).where(not_(embedded), Face.embeddings_expired_at.is_(None)).limit(1)
    if session.scalar(lacking) is not None:
        return False
    session.execute(update(ModelVersion).values(serving=ModelVersion.id == model_version_id))
    return True
