"""Retry: let the next run take up what failed and may succeed now, and say what would only fail again, and why."""

from collections import Counter
from collections.abc import Collection as Some
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.custody.erasing import ERASED
from infra.catalog.database import Catalog
from infra.catalog.images import StandsFailed, stand_failed, take_up
from infra.patience import patient
from tasks.images.image_format import Reason

REPLACED = "once the file is replaced, the next run takes it up by itself"
SAME_BYTES = f"the same bytes would fail again; {REPLACED}"
UNREAD = f"the same reader would refuse it again; {REPLACED}; after an update that reads more, name this reason"
LASTING: dict[str, str] = {
    Reason.EMPTY: SAME_BYTES,
    ERASED: "it was erased, and is not taken in again",
    "invalid_key": "no object can be read under this key; rename it",
}
# Worth another try only after somebody has raised a limit or updated the reader, and so only by name.
BY_NAME: dict[str, str] = {
    Reason.NOT_AN_IMAGE: UNREAD,
    Reason.UNSUPPORTED_FORMAT: UNREAD,
    Reason.TRUNCATED: UNREAD,
    Reason.CORRUPT: UNREAD,
    Reason.TOO_LARGE: "larger than VISAGE_MAX_BYTES; raise it, then name this reason",
    "object_too_large": "larger than VISAGE_MAX_BYTES; raise it, then name this reason",
    Reason.TOO_MANY_PIXELS: "more than VISAGE_MAX_MEGAPIXELS; raise it, then name this reason",
}


class NothingFailed(LookupError):
    """What was asked for does not stand as failed."""


@dataclass(frozen=True)
class Plan:
    """Ids of images to take up, and the others: how many per reason, and why not."""

    images: tuple[int, ...]
    taken: dict[str, int]
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)


def plan(session: Session, collection: str | None = None, reasons: Some[str] = (), keys: Some[str] = ()) -> Plan:
    """Say what `retry` would take up and what not, without doing it.

    Raises:
        UnknownCollection: with the names there are.
        NothingFailed: if a reason or key is named that no failed image has; says which ones there are.
    """
    collection_id = None if collection is None else collections.by_name(session, collection).id
    failed = stand_failed(session, collection_id)
    _must_be_there("reason", reasons, {image.reason for image in failed})
    _must_be_there("key", keys, {image.key for image in failed})
    chosen = [i for i in failed if (not reasons or i.reason in reasons) and (not keys or i.key in keys)]
    why = {image: _why_not(image, bool(reasons or keys)) for image in chosen}
    taken = [image for image in chosen if not why[image]]
    counts = Counter(image.reason for image in chosen if why[image])
    return Plan(
        tuple(image.image_id for image in taken),
        dict(Counter(image.reason for image in taken)),
        {image.reason: (counts[image.reason], why[image]) for image in chosen if why[image]},
    )


@patient
def retry(catalog: Catalog, collection: str | None = None, reasons: Some[str] = (), keys: Some[str] = ()) -> int:
    """Let the next run of each collection take up failed images: all, or those of some reasons or keys.

    Copies of the same bytes go along. Returns how many images there are. Raises what `plan` raises.
    """
    with catalog.write() as session:
        return take_up(session, plan(session, collection, reasons, keys).images)


def _why_not(image: StandsFailed, named: bool) -> str:
    if image.reason in BY_NAME and not named:
        return BY_NAME[image.reason]
    return LASTING.get(image.reason, "")


def _must_be_there(what: str, asked: Some[str], there: set[str]) -> None:
    for name in asked:
        if name not in there:
            some = ", ".join(sorted(there)[:10]) or "none"
            raise NothingFailed(f"no image stands as failed with the {what} {name!r}; there are: {some}")
