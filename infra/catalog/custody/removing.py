"""Removing a collection: the rows that are its own. What was erased from it on purpose stays known by its hashes."""

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, not_, select
from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.custody import erasing
from infra.catalog.tables.schema import Collection, Content, Face, Failure, Image, Run, Schedule, Split

COUNTED: dict[str, type[Image | Schedule | Run | Failure]] = {
    "images": Image,
    "schedules": Schedule,
    "runs": Run,
    "failures": Failure,
}


def faces_of(session: Session, collection_id: int) -> list[int]:
    """All faces of a collection, also of photographs that are not there any more."""
    contents = select(Content.id).where(Content.collection_id == collection_id)
    return list(session.scalars(select(Face.id).where(Face.content_id.in_(contents)).order_by(Face.id)))


def faceless(session: Session, collection_id: int) -> list[str]:
    """The SHA-256 of all photographs of a collection that show no face."""
    shows = exists().where(Face.content_id == Content.id)
    return list(session.scalars(select(Content.sha256).where(Content.collection_id == collection_id, not_(shows))))


def row_counts(session: Session, collection_id: int) -> dict[str, int]:
    """How many rows a collection has, besides those that hang on its faces."""
    return {
        name: session.scalar(select(func.count()).select_from(e).where(e.collection_id == collection_id)) or 0
        for name, e in COUNTED.items()
    }


def forget(session: Session, collection: Collection, faces: Sequence[int]) -> None:
    """Delete all rows of a collection, of which `faces` are all faces. Its number stays, with what was erased from it."""
    erasing.forget_faces(session, faces)
    for entity in (Failure, Image, Content, Split, Schedule, Run):
        of_it = delete(entity).where(entity.collection_id == collection.id)
        session.execute(of_it.execution_options(synchronize_session=False))
    session.expire_all()
    collections.leave_number(session, collection)
