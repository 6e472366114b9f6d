"""Retention: what collections say about how long embeddings are kept, carried out."""

from infra.asked import AskedWrongly
from infra.catalog import collections
from infra.catalog.custody import audit, places, retention
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Collection
from infra.settings import Settings
from tasks.custody import errands


class InvalidTerms(AskedWrongly):
    """The number of days is none."""


def set_terms(
    catalog: Catalog,
    name: str,
    retention_days: int | None = None,
    legal_basis: str | None = None,
    consent_note: str | None = None,
) -> Collection:
    """Write down on what grounds a collection is kept, and for how long; None leaves a term as it is, 0 days: for ever.

    Raises:
        UnknownCollection: with the names there are.
        InvalidTerms: for a number of days that is negative or too large.
    """
    if retention_days is not None and not 0 <= retention_days <= collections.MOST_DAYS:
        raise InvalidTerms(
            f"{retention_days} days: give 1 to {collections.MOST_DAYS}, or 0 to keep embeddings for ever"
        )
    with catalog.write() as session:
        collection = collections.by_name(session, name)
        if retention_days is not None:
            collection.retention_days = retention_days or None
        if legal_basis is not None:
            collection.legal_basis = legal_basis or None
        if consent_note is not None:
            collection.consent_note = consent_note or None
        return collection


def expire(catalog: Catalog, settings: Settings, who: str, only: str | None = None) -> dict[str, int]:
    """Delete the embeddings whose time is over, of one collection or of all: {collection: faces that lost theirs}.

    Errands that earlier erasures left are done as well.

    Raises:
        UnknownCollection: with the names there are.
    """
    counts: dict[str, int] = {}
    places.enter_what_is_there(catalog, settings)
    with catalog.read() as session:
        found = [collections.by_name(session, only)] if only is not None else collections.every(session)
        waiting = {c.id: retention.due(session, c) for c in found}
    for collection in found:
        if faces := waiting[collection.id]:
            with catalog.write() as session:
                erasure = retention.expire(session, who, collection, faces)
                subject = {"erasure": erasure.id, "collection": collection.id, "faces": len(faces)}
                audit.append(session, who, "retention", subject)
            counts[collection.name] = len(faces)
    errands.finish(catalog, settings)
    return counts
