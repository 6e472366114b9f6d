"""Collections, checked before they are entered, renamed or moved, for the command line and the service alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from infra.asked import AskedWrongly
from infra.catalog import collections as stored
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Collection
from infra.catalog.work.runs import RunInProgress, close_dead_runs, let_none_begin
from infra.settings import Settings
from infra.storage import Filter, Folder, Store, open_store
from infra.storage.base import LITTER
from infra.words import count
from tasks.discover import compare


@dataclass(frozen=True)
class Checked:
    """A collection that may be entered. `empty`: no object is there yet. `own`: see `own_places`."""

    name: str
    uri: str
    include: list[str]
    exclude: list[str]
    sensitive_attributes: list[str]
    empty: bool
    own: tuple[str, ...]


class InvalidCollection(AskedWrongly):
    """A name, place, pattern or attribute of a new collection does not fit; the message says which."""


def check(
    settings: Settings,
    name: str,
    uri: str,
    include: Sequence[str],
    exclude: Sequence[str] | None,
    sensitive_attributes: Sequence[str],
) -> Checked:
    """Return what can be entered, with the place written out in full.

    Raises:
        InvalidCollection: saying what does not fit.
        StoreError: if the place cannot be listed.
    """
    check_name(name)
    if sensitive_attributes:
        _check_attributes(sensitive_attributes)
    excluded = list(exclude or LITTER)
    try:
        Filter(tuple(include), tuple(excluded))
        store = open_store(uri, settings.storage_options)
    except ValueError as error:
        raise InvalidCollection(str(error)) from error
    own = own_places(settings, store)
    first = next(iter(store.list()), [])
    return Checked(name, store.uri, list(include), excluded, list(sensitive_attributes), not first, own)


def _check_attributes(names: Sequence[str]) -> None:
    from models.table import MODELS  # noqa: PLC0415 - imports torch

    known = {a.name for spec in MODELS.values() for a in spec.attributes if a.sensitive}
    if unknown := sorted(set(names) - known):
        raise InvalidCollection(f"{', '.join(unknown)}: no such sensitive attribute; known: {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Moved:
    """Where a collection lies from now on, and how many of its photographs are there.

    `found`: under their keys; `missing`: those that the next night will not find; `new`: those that it will.
    """

    name: str
    uri: str
    found: int
    missing: int
    new: int


def rename(catalog: Catalog, name: str, new: str) -> None:
    """Call a collection something else. Schedules, runs and all else refer to its number, and stay; jobs follow.

    Raises:
        UnknownCollection: with the names there are.
        InvalidCollection: if no collection can be called so.
        CollectionExists: if the name is taken.
        RunInProgress: while a run is at work on it, which finds it by its name.
    """
    check_name(new)
    with catalog.write() as session:
        stored.rename(session, _at_rest(session, name), new)


def move(catalog: Catalog, settings: Settings, name: str, uri: str) -> Moved:
    """Look for the photographs of a collection in another place from now on, under the keys they have.

    Raises:
        UnknownCollection: with the names there are.
        InvalidCollection: if this is no place for photographs, or not one of those that the catalog knows is there.
        StoreError: if the place cannot be listed.
        RunInProgress: while a run is at work on it.
    """
    with catalog.read() as session:
        collection = stored.by_name(session, name)
        checked = check(settings, name, uri, collection.include, collection.exclude, ())
        wanted = Filter(tuple(checked.include), tuple(checked.exclude), checked.own)
        there = compare(session, open_store(checked.uri, settings.storage_options), wanted, collection.id)
    moved = Moved(name, checked.uri, there.changed + there.unchanged, there.missing, there.new)
    if moved.missing and not moved.found:
        raise InvalidCollection(
            f"{moved.uri}: of {count(moved.missing, 'photograph')} of {name!r}, none is there under its key. Is the path "
            "right, from the same folder on? Nothing was changed. Other photographs are another collection: 'visage "
            "collections add'."
        )
    with catalog.write() as session:
        _at_rest(session, name).uri = moved.uri
    return moved


def _at_rest(session: Session, name: str) -> Collection:
    """The collection, on which no run begins as long as the transaction lasts.

    Raises:
        UnknownCollection: with the names there are.
        RunInProgress: while a run is at work on it.
    """
    collection = stored.by_name(session, name)
    let_none_begin(session, collection.id)
    if runs := close_dead_runs(session, collection.id):
        raise RunInProgress(f"run {runs[0].id} is at work on {name!r}; wait for it, or stop it first", False)
    return collection


def own_places(settings: Settings, photographs: Store) -> tuple[str, ...]:
    """What the keys of a collection begin with behind which Visage keeps files of its own: no photographs, but crops.

    Raises:
        InvalidCollection: if the collection lies as a whole where these files are.
    """
    crops = open_store(settings.crops_uri, settings.storage_options)
    found = {photographs.prefix_of(place) for place in (Folder(settings.home_folder), crops)}
    if "" in found or crops.prefix_of(photographs) is not None:
        raise InvalidCollection(
            f"{photographs.uri}: Visage keeps its own files there. Choose another place for them (VISAGE_HOME, "
            "VISAGE_OBJECTS_URI), or for the photographs."
        )
    return tuple(sorted(prefix for prefix in found if prefix is not None))


def check_name(name: str) -> None:
    """Raises InvalidCollection: if no collection can be called so."""
    if not name.strip() or not name.isprintable() or "/" in name:
        raise InvalidCollection(f"{name!r} is no name: it needs visible characters, and no slash")
