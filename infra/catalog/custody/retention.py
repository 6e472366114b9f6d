"""Retention: embeddings are deleted so many days after their face was found, as a collection says."""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from infra.catalog.chunks import chunks
from infra.catalog.collections import MOST_DAYS
from infra.catalog.custody import erasing, places
from infra.catalog.identities.enforcement import drop_stale_proposals, refresh_exemplars
from infra.catalog.tables.custody import Errand, Keeps
from infra.catalog.tables.schema import Collection as CollectionRow
from infra.catalog.tables.schema import Content, Embedding, Erasure, Face, FaceIdentity, now


def due(session: Session, collection: CollectionRow) -> list[int]:
    """Faces of a collection whose embeddings are to be deleted now."""
    if collection.retention_days is None:
        return []
    before = now() - timedelta(days=min(collection.retention_days, MOST_DAYS))
    return list(
        session.scalars(
            select(Face.id)
            .join(Content, Content.id == Face.content_id)
            .where(
                Content.collection_id == collection.id,
                Face.found_at <= before,
                Face.embeddings_expired_at.is_(None),
            )
        )
    )


def expire(session: Session, who: str, collection: CollectionRow, faces: Collection[int]) -> Erasure:
    """Delete the embeddings of faces, for good. Face, crop and place among people stay; nobody is compared with them again."""
    touched: set[int] = set()
    for part in chunks(faces):
        session.execute(update(Face).where(Face.id.in_(part)).values(embeddings_expired_at=now()))
        session.execute(delete(Embedding).where(Embedding.face_id.in_(part)))
        among = select(FaceIdentity.identity_id).where(FaceIdentity.face_id.in_(part), FaceIdentity.exemplar)
        touched.update(place for place in session.scalars(among) if place is not None)
    refresh_exemplars(session, touched)
    drop_stale_proposals(session)
    erasure = Erasure(
        kind="retention",
        reason=f"collection {collection.name}: embeddings are kept for {collection.retention_days} days",
        who=who,
        counts={"embeddings_of_faces": len(faces)},
    )
    session.add(erasure)
    session.flush()
    places.post(session, erasure.id, Errand.FILE, Keeps.CACHE, ["index"])
    erasing.post_scrub(session, erasure.id)
    return erasure
