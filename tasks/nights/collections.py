"""Check a collection before it is entered, for the command line and the service alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from infra.settings import Settings
from infra.storage import Filter, Folder, Store, open_store
from infra.storage.base import LITTER
from models.table import MODELS


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


class InvalidCollection(ValueError):
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
    known = {a.name for spec in MODELS.values() for a in spec.attributes if a.sensitive}
    unknown = sorted(set(sensitive_attributes) - known)
    if unknown:
        raise InvalidCollection(f"{', '.join(unknown)}: no such sensitive attribute; known: {', '.join(sorted(known))}")
    excluded = list(exclude or LITTER)
    try:
        Filter(tuple(include), tuple(excluded))
        store = open_store(uri, settings.storage_options)
    except ValueError as error:
        raise InvalidCollection(str(error)) from error
    own = own_places(settings, store)
    first = next(iter(store.list()), [])
    return Checked(name, store.uri, list(include), excluded, list(sensitive_attributes), not first, own)


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
