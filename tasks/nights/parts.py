"""Parts: cut a collection's keys into stretches of about equal length, so that several runs can share it.

The cuts are made once, of the keys that the catalog knows (or the listing shows, the first time), and kept: every run that
asks for a part of so many gets the same ones, whenever and wherever it starts, and none is left out or done twice.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import closing

from infra.asked import AskedWrongly
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.images import known
from infra.catalog.tables.schema import Collection
from infra.catalog.work import splits
from infra.catalog.work.key_range import KeyRange, ranges
from infra.settings import Settings
from infra.storage import Filter, open_store
from infra.storage.base import ListingProblem

MOST_PARTS = 1000
SAMPLE = 16 * MOST_PARTS  # keys that are remembered on the way; each part is right to a sixteenth of itself or better


class UnusablePart(AskedWrongly):
    """A part is not written like 2/4, or there is not enough for so many."""


def keys_of(settings: Settings, collection: str, part: str) -> KeyRange:
    """The keys of a part ("2/4": the second of four) of a collection.

    Raises:
        UnusablePart: if it is not written so, or the collection has fewer images than parts.
        UnknownCollection, StoreError: as their names say.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    number, of = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= number <= of <= MOST_PARTS:
        raise UnusablePart(
            f"{part!r} is no part of a collection; write 2/4 for the second of four (at most {MOST_PARTS})"
        )
    with closing(Catalog(settings.catalog_url)) as catalog:
        return split(settings, catalog, collection, of)[number - 1]


def split(settings: Settings, catalog: Catalog, collection_name: str, parts: int, anew: bool = False) -> list[KeyRange]:
    """The stretches that a collection is cut into; with `anew`, cut afresh, since it has grown unevenly.

    Raises:
        UnusablePart: if it has fewer images than parts.
        UnknownCollection, StoreError: as their names say.
        RunInProgress: if it is to be cut anew while a run is at work on it.
    """
    with catalog.read() as session:
        collection = collections.by_name(session, collection_name)
        boundaries = None if anew else splits.boundaries(session, collection.id, parts)
    if boundaries is None:
        boundaries = cut(_keys(settings, catalog, collection), parts)
        if len(boundaries) < parts - 1:
            raise UnusablePart(f"{collection_name!r} has too few images for {parts} parts; run it as a whole")
        with catalog.write() as session:
            boundaries = splits.keep(session, collection.id, parts, boundaries, anew)
    return ranges(boundaries)


def _keys(settings: Settings, catalog: Catalog, collection: Collection) -> Iterator[str]:
    empty = True
    with catalog.read() as session:
        for image in known(session, collection.id):
            empty = False
            yield image.key
    if empty:
        wanted = Filter(tuple(collection.include), tuple(collection.exclude))
        for page in open_store(collection.uri, settings.storage_options).list():
            yield from (e.key for e in page if not isinstance(e, ListingProblem) and wanted(e.key))


def cut(keys: Iterable[str], parts: int) -> list[str]:
    """Where to cut ascending keys into parts of about equal length: fewer than `parts` boundaries if there are few keys."""
    sample: list[str] = []
    step = 1
    for position, key in enumerate(keys, start=1):
        if position % step == 0:
            sample.append(key)
            if len(sample) == SAMPLE:  # every second one from here on
                sample, step = sample[1::2], 2 * step
    positions = (len(sample) * i // parts for i in range(1, parts))
    return list(dict.fromkeys(sample[position - 1] for position in positions if position > 0))
