"""Discover: walk a collection's listing and the catalog side by side, and find what is new, changed or missing.

Both are in the order of the keys' bytes, so one pass over two streams tells all, holding a page of each: what has not
changed costs its share of the listing and of an indexed read, and no write.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from sqlalchemy.orm import Session

from infra.catalog.custody.erasing import Erased
from infra.catalog.database import Catalog
from infra.catalog.images import Known, Listed, any_present, known, put_back, put_missing, put_pending, reopen
from infra.catalog.tables.schema import LONGEST_KEY, ImageStatus
from infra.catalog.work.failures import DISCOVER, FailureRecord, record_failures, resolve_unlisted
from infra.catalog.work.key_range import EVERY_KEY, KeyRange
from infra.catalog.work.runs import hold
from infra.patience import patient
from infra.storage.base import Entry, Filter, ListingProblem, Page, Store, StoreEmpty, StoreError

WRITE_EVERY = 1000


@dataclass(frozen=True)
class Discovery:
    """How a listing compares with the catalog."""

    new: int = 0
    changed: int = 0
    missing: int = 0
    unchanged: int = 0
    ignored: int = 0
    unlisted: int = 0

    @property
    def listed(self) -> int:
        return self.new + self.changed + self.unchanged


def discover(
    catalog: Catalog,
    store: Store,
    wanted: Filter,
    collection_id: int,
    run_id: int,
    recipe: str,
    on_progress: Callable[[int], None] = lambda listed: None,
    keys: KeyRange = EVERY_KEY,
) -> Discovery:
    """Bring the catalog's images up to date with the store, and reopen what this recipe has to do again.

    Raises:
        StoreEmpty: if nothing is there any more of a collection that the catalog knows. Nothing is marked missing.
        StoreError: if the store cannot be listed; what was found until then is kept.
        LeaseLost: if the run was closed meanwhile; from then on nothing is written.
    """
    _check_there(catalog, store, wanted, collection_id)
    counts = {field.name: 0 for field in fields(Discovery)}
    pending: list[Listed] = []
    returned: list[str] = []
    missing: list[str] = []
    problems: list[FailureRecord] = []

    def flush() -> None:
        if pending or missing or problems:
            with catalog.write() as session:
                hold(session, run_id)
                put_pending(session, collection_id, pending)
                put_back(session, collection_id, returned, recipe)
                put_missing(session, collection_id, missing)
                record_failures(session, run_id, collection_id, problems)
        for part in (pending, returned, missing, problems):
            part.clear()

    unreadable = None  # a directory whose keys are unknown tonight, and so not missing
    with catalog.read() as reading:
        erased = Erased(reading, collection_id)
        for entry, remembered in merge(_listing(store, keys), known(reading, collection_id, keys)):
            if isinstance(entry, ListingProblem) and wanted.may_want(entry.key):
                problems.append(FailureRecord(entry.key, DISCOVER, "unlistable", entry.message, retryable=True))
                counts["unlisted"] += 1
                unreadable = entry.key if entry.key.endswith("/") else unreadable
            elif remembered is not None and unreadable is not None and remembered.key.startswith(unreadable):
                counts["unchanged"] += 1
            elif (
                entry is None
                or isinstance(entry, ListingProblem)
                or not wanted(entry.key)
                or (remembered is None and erased.object(entry))
            ):
                counts["ignored"] += entry is not None
                if remembered is not None and remembered.status is not ImageStatus.MISSING:
                    missing.append(remembered.key)
                    counts["missing"] += 1
            elif remembered is None or _differs(entry, remembered):
                pending.append(Listed(entry.key, entry.etag, entry.size, entry.modified))
                if remembered is not None and _same_object(entry, remembered):
                    returned.append(entry.key)
                counts["new" if remembered is None else "changed"] += 1
            else:
                counts["unchanged"] += 1
            if len(pending) + len(missing) + len(problems) >= WRITE_EVERY:
                flush()
                on_progress(counts["new"] + counts["changed"] + counts["unchanged"])
        flush()
    with catalog.write() as session:
        hold(session, run_id)
        resolve_unlisted(session, run_id, collection_id, keys)
        reopen(session, collection_id, recipe, keys)
    return Discovery(**counts)


def compare(session: Session, store: Store, wanted: Filter, collection_id: int) -> Discovery:
    """How the photographs in some place compare with those that the catalog knows. Nothing is read of them, or changed.

    Raises:
        StoreError: if the place cannot be listed.
    """
    counts = Counter[str]()
    for entry, remembered in merge(_listing(store, EVERY_KEY), known(session, collection_id)):
        if isinstance(entry, ListingProblem):
            counts["unlisted"] += wanted.may_want(entry.key)
        elif entry is not None and wanted(entry.key):
            here = remembered is not None and _same_object(entry, remembered)
            counts["new" if remembered is None else "unchanged" if here else "changed"] += 1
        else:
            counts["ignored"] += entry is not None
            counts["missing"] += remembered is not None and remembered.status is not ImageStatus.MISSING
    return Discovery(**counts)


def _listing(store: Store, keys: KeyRange) -> Iterator[Entry | ListingProblem]:
    """The entries of a store within a range of keys; a listing that breaks off is continued where it did."""
    pages: Iterator[Page] | None = None
    last = keys.after

    @patient
    def following() -> Page | None:
        nonlocal pages
        pages = pages or store.list(start_after=last)
        try:
            return next(pages, None)
        except StoreError:
            pages = None
            raise

    while page := following():
        for entry in page:
            if keys.through is not None and entry.key > keys.through:
                return
            yield _kept(store, entry)
        last = page[-1].key


def _kept(store: Store, entry: Entry | ListingProblem) -> Entry | ListingProblem:
    """What is listed, or, if no catalog keeps its key, the problem of it."""
    if isinstance(entry, ListingProblem) or (size := len(entry.key.encode())) <= LONGEST_KEY:
        return entry
    told = f"its name and folders have {size:,} bytes; at most {LONGEST_KEY:,} are kept. Move it into fewer or shorter folders."
    return ListingProblem(entry.key, f"{store.url(entry.key)}: {told}")


def _check_there(catalog: Catalog, store: Store, wanted: Filter, collection_id: int) -> None:
    """Raises StoreEmpty: if there were photographs, and the whole store now lists none; then all of them are hardly gone."""
    with catalog.read() as session:
        if not any_present(session, collection_id):
            return
    listing = _listing(store, EVERY_KEY)
    if not any(wanted.may_want(e.key) if isinstance(e, ListingProblem) else wanted(e.key) for e in listing):
        raise StoreEmpty(
            f"{store.uri}: not one photograph of this collection is there any more. Is the drive mounted, the path right? "
            "Nothing was changed. If all of them were taken out on purpose, put any one picture there, and run again: the "
            "others are marked as missing then."
        )


def _differs(entry: Entry, remembered: Known) -> bool:
    return remembered.status is ImageStatus.MISSING or not _same_object(entry, remembered)


def _same_object(entry: Entry, remembered: Known) -> bool:
    return entry.etag == remembered.etag and entry.size == remembered.size


def merge(
    listing: Iterable[Entry | ListingProblem], catalog: Iterable[Known]
) -> Iterator[tuple[Entry | ListingProblem | None, Known | None]]:
    """Pair two streams that are in the order of their keys' bytes; what only one of them has comes with None."""
    left, right = iter(listing), iter(catalog)
    entry, remembered = next(left, None), next(right, None)
    while entry is not None or remembered is not None:
        entry_key = None if entry is None else entry.key.encode()
        known_key = None if remembered is None else remembered.key.encode()
        if known_key is None or (entry_key is not None and entry_key < known_key):
            yield entry, None
            entry = next(left, None)
        elif entry_key is None or known_key < entry_key:
            yield None, remembered
            remembered = next(right, None)
        else:
            yield entry, remembered
            entry, remembered = next(left, None), next(right, None)
