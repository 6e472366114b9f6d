"""Check a collection before it is entered, for the command line and the service alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from infra.settings import Settings
from infra.storage import Filter, open_store
from infra.storage.base import LITTER
from models.table import MODELS


@dataclass(frozen=True)
class Checked:
    """A collection that may be entered. `empty`: no object is there yet."""

    name: str
    uri: str
    include: list[str]
    exclude: list[str]
    sensitive_attributes: list[str]
    empty: bool


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
    first = next(iter(store.list()), [])
    return Checked(name, store.uri, list(include), excluded, list(sensitive_attributes), not first)


def check_name(name: str) -> None:
    """Raises InvalidCollection: if no collection can be called so."""
    if not name.strip() or not name.isprintable() or "/" in name:
        raise InvalidCollection(f"{name!r} is no name: it needs visible characters, and no slash")
