"""Collections in the catalog."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import Collection

MOST_DAYS = 36_500  # that embeddings may be kept for: a hundred years, and no date that calendars do not know


class UnknownCollection(LookupError):
    """No collection has that name."""


class CollectionExists(ValueError):
    """A collection of that name is there already."""


def add(
    session: Session, name: str, uri: str, include: list[str], exclude: list[str], sensitive_attributes: list[str]
) -> Collection:
    """Add a collection.

    Raises:
        CollectionExists: if the name is taken.
    """
    exclusive(session, "collections")
    if session.scalar(select(Collection).where(Collection.name == name)) is not None:
        raise CollectionExists(f"a collection called {name!r} exists already; choose another name")
    collection = Collection(
        name=name, uri=uri, include=include, exclude=exclude, sensitive_attributes=sensitive_attributes
    )
    session.add(collection)
    session.flush()
    return collection


def by_name(session: Session, name: str) -> Collection:
    """Look a collection up.

    Raises:
        UnknownCollection: with the names there are.
    """
    collection = session.scalar(select(Collection).where(Collection.name == name))
    if collection is None:
        names = ", ".join(session.scalars(select(Collection.name).order_by(Collection.name))) or "none yet"
        raise UnknownCollection(
            f"no collection is called {name!r} (there are: {names}); 'visage collections add {name} FOLDER_OR_S3_URI' makes one"
        )
    return collection


def every(session: Session) -> list[Collection]:
    return list(session.scalars(select(Collection).order_by(Collection.name)))
