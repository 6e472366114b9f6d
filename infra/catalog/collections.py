"""Collections in the catalog."""

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import Collection, now
from infra.catalog.tables.service import RUN, Job

REMOVED = "removed/"  # how removed ones are called; no other name has a slash
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
    _check_free(session, name)
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
    collection = session.scalar(_there().where(Collection.name == name))
    if collection is None:
        names = ", ".join(found.name for found in every(session)) or "none yet"
        raise UnknownCollection(
            f"no collection is called {name!r} (there are: {names}); 'visage collections add {name} FOLDER_OR_S3_URI' makes one"
        )
    return collection


def every(session: Session) -> list[Collection]:
    """All collections, by name."""
    return list(session.scalars(_there().order_by(Collection.name)))


def rename(session: Session, collection: Collection, name: str) -> None:
    """Call a collection something else.

    Raises:
        CollectionExists: if the name is taken.
    """
    exclusive(session, "collections")
    _check_free(session, name)
    _call(session, collection, name)


def leave_number(session: Session, collection: Collection) -> None:
    """Leave nothing of a collection but its number, on which the hashes of what was erased from it on purpose hang."""
    _call(session, collection, f"{REMOVED}{collection.id}")
    collection.uri, collection.include, collection.exclude, collection.sensitive_attributes = "", [], [], []
    collection.legal_basis = collection.consent_note = collection.retention_days = None
    collection.removed_at = now()


def _call(session: Session, collection: Collection, name: str) -> None:
    """Rename it, and in the book of jobs, which goes by names: the old one may become another collection's."""
    session.execute(update(Job).where(Job.kind == RUN, Job.subject == collection.name).values(subject=name))
    collection.name = name


def _check_free(session: Session, name: str) -> None:
    if session.scalar(select(Collection).where(Collection.name == name)) is not None:
        raise CollectionExists(f"a collection called {name!r} exists already; choose another name")


def _there() -> Select[tuple[Collection]]:
    return select(Collection).where(Collection.removed_at.is_(None))
