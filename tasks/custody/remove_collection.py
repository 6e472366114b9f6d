"""Remove a collection: all that the catalog knows of its photographs goes, as by an erasure, but may come in again.

A plan says what would go. Carried out, the rows go in one transaction that also leaves errands in the outbox, and the same
`finish` does them. No hash is left behind, so that the collection can be added again; what was erased from it on purpose
before stays out of every collection that is added later.
"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.custody import audit, erasing, places, removing
from infra.catalog.database import Catalog
from infra.catalog.identities import enforcement
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import Errand, Keeps
from infra.catalog.tables.schema import Collection, Erasure, Run, Schedule
from infra.catalog.work.runs import at_work, close_dead_runs, let_none_begin
from infra.patience import patient
from infra.settings import Settings
from infra.storage import Entry, StoreError, StoreMissing, open_store
from tasks.custody import erase, errands
from tasks.custody.erase import STAYS, CannotErase, Certificate
from tasks.custody.errands import Finished
from tasks.record import folder_of

PEOPLE = "Names and decisions go with the last face of whoever is in no other collection."
NUMBERS = "MLflow keeps the numbers of its nights, without pictures and without names of files."
AGAIN = "It can be added again, and is then processed anew. What was erased from it on purpose stays out."


@dataclass(frozen=True)
class Removal:
    """What removing a collection would take. `counts`: rows and files by kind. `exhibits`: pages, exports and archives that
    may show its faces, as paths. `schedules`: by their names."""

    collection: str
    uri: str
    counts: dict[str, int]
    schedules: tuple[str, ...]
    exhibits: tuple[str, ...]
    notes: tuple[str, ...] = (STAYS, PEOPLE, NUMBERS, AGAIN)


def plan(session: Session, name: str) -> Removal:
    """What removing a collection would take.

    Raises:
        UnknownCollection: with the names there are.
        CannotErase: while a run is at work on it.
    """
    collection = collections.by_name(session, name)
    _refuse(at_work(session, collection.id))
    return _plan(session, collection, removing.faces_of(session, collection.id))


def remove(catalog: Catalog, settings: Settings, who: str, planned: Removal) -> tuple[Certificate, Finished]:
    """Carry a plan out: rows at once, the rest through the outbox. Call it without an open transaction.

    Raises:
        UnknownCollection: if it is not there any more.
        CannotErase: while a run is at work on it, or if something else would go by now.
        StoreError: if its crops cannot be listed; then nothing was removed.
    """
    places.enter_what_is_there(catalog, settings)
    with catalog.read() as session:
        crops = _crops(settings, collections.by_name(session, planned.collection).id)
    with catalog.write() as session:
        exclusive(session, enforcement.PEOPLE)
        collection = collections.by_name(session, planned.collection)
        let_none_begin(session, collection.id)
        _refuse(close_dead_runs(session, collection.id))
        faces = removing.faces_of(session, collection.id)
        found = _plan(session, collection, faces)
        if seen(found) != seen(planned):
            raise CannotErase(f"{planned.collection!r} has changed since the plan was made; look at it again")
        erasure = Erasure(
            kind="collection", reason=f"collection {collection.name} was removed", who=who, counts=found.counts
        )
        session.add(erasure)
        session.flush()
        gone = erase.Plan(
            kind="collection",
            faces=tuple(faces),
            image_ids=(),
            collection_ids=(collection.id,),
            keys=(),
            counts=found.counts,
            exhibits=found.exhibits,
            notes=found.notes,
            similarities={},
        )
        erase.leave_errands(session, erasure.id, gone)
        unknown = crops - erasing.objects_of(session, faces)
        places.post(session, erasure.id, Errand.OBJECT, Keeps.OBJECTS, unknown)
        thumbnails = [f"thumbnails/{sha[:2]}/{sha}" for sha in removing.faceless(session, collection.id)]
        places.post(session, erasure.id, Errand.FILE, Keeps.CACHE, thumbnails)
        removing.forget(session, collection, faces)
        subject = {"erasure": erasure.id, "kind": erasure.kind, "collection": collection.id, "counts": found.counts}
        audit.append(session, who, "erase", subject)
    finished = errands.finish(catalog, settings)
    with catalog.read() as session:
        return erase.certificate(session, erasure.id), finished


def _plan(session: Session, collection: Collection, faces: list[int]) -> Removal:
    schedules = select(Schedule.name).where(Schedule.collection_id == collection.id).order_by(Schedule.name)
    counts = removing.row_counts(session, collection.id)
    return Removal(
        collection=collection.name,
        uri=collection.uri,
        counts={**counts, **erase.counts_of(session, faces, [collection.id])},
        schedules=tuple(session.scalars(schedules)),
        exhibits=erase.exhibits_of(session, [collection.id]),
    )


def seen(planned: Removal) -> tuple[object, ...]:
    """What must not have changed since somebody looked; a backfill, say, may have made embeddings meanwhile."""
    return planned.collection, planned.counts["images"], planned.counts["faces"], planned.schedules, planned.exhibits


def _refuse(runs: list[Run]) -> None:
    if runs:
        raise CannotErase(f"run {runs[0].id} is at work on this collection; wait for it, or stop it first")


@patient
def _crops(settings: Settings, collection_id: int) -> set[str]:
    """All crops of a collection, also those that no row refers to, as a run leaves them that died.

    Raises:
        StoreError: if they cannot be listed.
    """
    found = set[str]()
    try:
        for page in open_store(settings.crops_uri, settings.storage_options).list(folder_of(collection_id)):
            for entry in page:
                if not isinstance(entry, Entry):
                    raise StoreError(entry.message)
                found.add(entry.key)
    except StoreMissing:
        pass  # no crop has ever been written
    return found
