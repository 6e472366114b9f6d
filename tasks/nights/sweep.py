"""Sweep: remove crops that no row refers to, as a run leaves them that died or failed between the store and the catalog.

A night that follows a good one has nothing to sweep and does not look: listing all crops is for the night after a bad one.
"""

from infra.catalog.database import Catalog
from infra.catalog.faces import crop_keys
from infra.catalog.images import contents_by_digest, in_live_hands
from infra.patience import patient
from infra.storage import Entry, Store, StoreMissing
from tasks.record import digest_of, folder_of


def sweep(catalog: Catalog, crops: Store, collection_id: int, run_id: int) -> int:
    """Remove a collection's orphaned crops, and return how many there were.

    Raises:
        StoreError: if the crops cannot be listed or removed; what is left is swept by the next run.
    """

    @patient
    def orphans(keys: set[str]) -> set[str]:
        with catalog.read() as session:
            contents = contents_by_digest(session, collection_id, {digest_of(key) for key in keys})
            return keys - crop_keys(session, contents.values())

    @patient
    def remove(keys: set[str]) -> int:
        with catalog.write() as session:  # while it is open, nobody claims these photos and writes their crops anew
            contents = contents_by_digest(session, collection_id, {digest_of(key) for key in keys}, lock=True)
            busy = in_live_hands(session, contents.values(), besides=run_id)
            spared = {digest for digest, content in contents.items() if content in busy}
            doomed = {key for key in keys - crop_keys(session, contents.values()) if digest_of(key) not in spared}
            for key in sorted(doomed):
                crops.delete(key)
            return len(doomed)

    removed = 0
    try:
        for page in crops.list(folder_of(collection_id)):
            keys = {entry.key for entry in page if isinstance(entry, Entry) and digest_of(entry.key)}
            if unknown := orphans(keys):
                removed += remove(unknown)
    except StoreMissing:
        return 0  # no crop has ever been written
    return removed
