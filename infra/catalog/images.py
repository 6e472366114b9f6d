"""Images in the catalog: the ledger of what a listing showed and what became of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from infra.catalog.chunks import chunks
from infra.catalog.statements import upsert
from infra.catalog.tables.schema import Content, ContentStatus, Face, Failure, Image, ImageStatus, Run, RunStatus, now
from infra.catalog.work.key_range import EVERY_KEY, KeyRange


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it."""

    key: str
    etag: str
    size: int
    modified_at: datetime


@dataclass(frozen=True)
class Known:
    """What the catalog remembers of a key."""

    key: str
    etag: str
    size: int
    status: ImageStatus


@dataclass(frozen=True)
class Work:
    """An image waiting to be processed."""

    image_id: int
    key: str
    etag: str
    size: int


def known(session: Session, collection_id: int, keys: KeyRange = EVERY_KEY, page: int = 5000) -> Iterator[Known]:
    """Walk the keys of a collection in the order of their bytes, holding one page at a time."""
    after = keys.after or ""
    while True:
        statement = (
            select(Image.key, Image.etag, Image.size, Image.status)
            .where(Image.collection_id == collection_id, KeyRange(after, keys.through).holds(Image.key))
            .order_by(Image.key)
            .limit(page)
        )
        rows = session.execute(statement).all()
        yield from (Known(row.key, row.etag, row.size, ImageStatus(row.status)) for row in rows)
        if len(rows) < page or rows[-1].key == keys.through:
            return
        after = rows[-1].key


def put_pending(session: Session, collection_id: int, listed: Iterable[Listed]) -> None:
    """Take in new objects, and changed ones anew; these remember the content whose faces they have shown (`inheritance.py`)."""
    listed, since = list(listed), now()
    if not listed:
        return
    showed_faces = exists().where(Face.content_id == Image.content_id)
    changed = Image.collection_id == collection_id, Image.key.in_([entry.key for entry in listed])
    session.execute(
        update(Image)
        .where(*changed, Image.former_content_id.is_(None), showed_faces)
        .values(former_content_id=Image.content_id)
        .execution_options(synchronize_session=False)
    )
    rows = [
        {
            "collection_id": collection_id,
            "key": entry.key,
            "etag": entry.etag,
            "size": entry.size,
            "modified_at": entry.modified_at,
            "status": ImageStatus.PENDING.value,
            "retryable": False,
            "pending_since": since,
        }
        for entry in listed
    ]
    fresh = ["etag", "size", "modified_at", "status", "retryable", "pending_since"]
    upsert(session, Image, rows, ["collection_id", "key"], fresh)


def put_back(session: Session, collection_id: int, keys: Sequence[str], recipe: str) -> None:
    """Mark pending objects as done that were missing and are back as they were, if this recipe has processed them."""
    processed = exists().where(
        Content.id == Image.content_id, Content.status == ContentStatus.DONE.value, Content.recipe == recipe
    )
    session.execute(
        update(Image)
        .where(Image.collection_id == collection_id, Image.key.in_(keys), Image.recipe == recipe, processed)
        .values(status=ImageStatus.DONE.value)
    )


def put_missing(session: Session, collection_id: int, keys: Sequence[str]) -> None:
    """Mark objects that the listing no longer shows. Their faces stay in the catalog, out of sight, until erased.

    Why they could not be processed is of no matter any more.
    """
    gone = Image.collection_id == collection_id, Image.key.in_(keys)
    session.execute(update(Image).where(*gone).values(status=ImageStatus.MISSING.value, retryable=False))
    failures = Failure.image_id.in_(select(Image.id).where(*gone)), Failure.resolved_at.is_(None)
    session.execute(update(Failure).where(*failures).values(resolved_at=now()))


def reopen(session: Session, collection_id: int, recipe: str, keys: KeyRange = EVERY_KEY) -> None:
    """Make pending what was done by another recipe, and what failed for a reason that may have passed."""
    session.execute(
        update(Image)
        .where(
            Image.collection_id == collection_id,
            keys.holds(Image.key),
            or_(
                and_(
                    Image.status.in_([ImageStatus.DONE.value, ImageStatus.FAILED.value]),
                    or_(Image.recipe.is_(None), Image.recipe != recipe),
                ),
                and_(Image.status == ImageStatus.FAILED.value, Image.retryable),
            ),
        )
        .values(status=ImageStatus.PENDING.value, retryable=False, pending_since=now())
    )


@dataclass(frozen=True)
class StandsFailed:
    """An image that stands as failed, and the latest reason."""

    image_id: int
    key: str
    reason: str


def stand_failed(session: Session, collection_id: int | None) -> list[StandsFailed]:
    """The failed images of a collection, or of all, by their keys."""
    latest = (
        select(func.max(Failure.id)).where(Failure.image_id.is_not(None), Failure.resolved_at.is_(None))
    ).group_by(Failure.image_id)
    statement = (
        select(Image.id, Image.key, Failure.reason)
        .join(Failure, Failure.image_id == Image.id)
        .where(Image.status == ImageStatus.FAILED.value, Failure.id.in_(latest))
        .order_by(Image.key)
    )
    if collection_id is not None:
        statement = statement.where(Image.collection_id == collection_id)
    return [StandsFailed(*row) for row in session.execute(statement).tuples()]


def take_up(session: Session, image_ids: Iterable[int]) -> int:
    """Have the next run `reopen` failed images, and the failed copies of their bytes with them; returns how many."""
    taken: set[int] = set()
    for these in chunks(image_ids):
        contents = select(Image.content_id).where(Image.id.in_(these), Image.content_id.is_not(None))
        chosen = Image.status == ImageStatus.FAILED.value, or_(Image.id.in_(these), Image.content_id.in_(contents))
        found = select(Image.id).where(*chosen)
        taken.update(session.scalars(found))
        open_failures = Failure.image_id.in_(found), Failure.resolved_at.is_(None)
        session.execute(update(Failure).where(*open_failures).values(retryable=True))
        session.execute(update(Image).where(*chosen).values(retryable=True))
    return len(taken)


def any_image(session: Session, collection_id: int) -> bool:
    """Whether a night has ever seen an image of a collection."""
    return session.scalar(select(Image.id).where(Image.collection_id == collection_id).limit(1)) is not None


def any_present(session: Session, collection_id: int) -> bool:
    """Whether the last listing of a collection showed an image."""
    present = Image.collection_id == collection_id, Image.status != ImageStatus.MISSING.value
    return session.scalar(select(Image.id).where(*present).limit(1)) is not None


def count_pending(session: Session, collection_id: int, keys: KeyRange = EVERY_KEY) -> int:
    statement = select(func.count()).where(
        Image.collection_id == collection_id, Image.status == ImageStatus.PENDING.value, keys.holds(Image.key)
    )
    return session.scalar(statement) or 0


def _to_do(collection_id: int, run_id: int, keys: KeyRange) -> ColumnElement[bool]:
    """What is pending and not already in this run's hands (a copy of another image's bytes waits for that one)."""
    return and_(
        Image.collection_id == collection_id,
        Image.status == ImageStatus.PENDING.value,
        or_(Image.run_id.is_(None), Image.run_id != run_id),
        keys.holds(Image.key),
    )


def pending_pages(
    session: Session, collection_id: int, run_id: int, size: int, keys: KeyRange = EVERY_KEY
) -> list[tuple[int, int]]:
    """Cut the images that a run still has to do into ranges (first id, last id) of `size` images each."""
    numbered = (
        select(Image.id, func.row_number().over(order_by=Image.id).label("position"))
        .where(_to_do(collection_id, run_id, keys))
        .subquery()
    )
    page = (numbered.c.position - 1) // size
    statement = select(func.min(numbered.c.id), func.max(numbered.c.id)).group_by(page).order_by(page)
    return [(first, last) for first, last in session.execute(statement)]


def pending(
    session: Session, collection_id: int, run_id: int, page: tuple[int, int], keys: KeyRange = EVERY_KEY
) -> list[Work]:
    """The images of one range that a run still has to do."""
    statement = (
        select(Image.id, Image.key, Image.etag, Image.size)
        .where(_to_do(collection_id, run_id, keys), Image.id.between(*page))
        .order_by(Image.id)
    )
    return [Work(*row) for row in session.execute(statement)]


def claimed_by(session: Session, run_id: int, image_ids: Sequence[int]) -> dict[int, int]:
    """The contents that images of a run have claimed and not finished, as {image id: content id}."""
    statement = select(Content.owner_image_id, Content.id).where(
        Content.owner_image_id.in_(image_ids),
        Content.run_id == run_id,
        Content.status == ContentStatus.CLAIMED.value,
    )
    return dict(session.execute(statement).tuples().all())


def contents_by_digest(
    session: Session, collection_id: int, digests: Iterable[str], lock: bool = False
) -> dict[str, int]:
    """Which of these bytes the catalog knows, as {sha256: content id}; `lock` keeps others from claiming them."""
    statement = select(Content.sha256, Content.id).where(
        Content.collection_id == collection_id, Content.sha256.in_(list(digests))
    )
    return dict(session.execute(statement.with_for_update() if lock else statement).tuples().all())


def in_live_hands(session: Session, contents: Iterable[int], besides: int) -> set[int]:
    """Those contents that some other run than `besides` works on right now."""
    statement = (
        select(Content.id)
        .join(Run, Run.id == Content.run_id)
        .where(Content.id.in_(list(contents)), Run.id != besides, Run.status == RunStatus.RUNNING.value)
    )
    return set(session.scalars(statement))


def claim(
    session: Session, collection_id: int, run_id: int, recipe: str, digests: Sequence[tuple[int, str]]
) -> dict[int, tuple[int, bool]]:
    """Say for (image id, sha256) pairs which content they hold, and whether this image is the one to process it.

    Identical bytes are processed once: the first image of a run to claim a content owns it, and claims it again if its
    work is repeated (Ray runs tasks at least once); the others share the result, also that of a run on other keys that is at
    work now. Returns {image id: (content id, mine)}.
    """
    digests = sorted(digests, key=itemgetter(1))  # all lock in one order: nobody waits for one who waits for them
    upsert(
        session,
        Content,
        [
            {
                "collection_id": collection_id,
                "sha256": sha256,
                "status": ContentStatus.CLAIMED.value,
                "recipe": recipe,
                "owner_image_id": image_id,
                "run_id": run_id,
                "notes": [],
                "failure_retryable": False,
            }
            for image_id, sha256 in digests
        ],
        ["collection_id", "sha256"],
        [],
    )
    found = {
        content.sha256: content
        for content in session.scalars(
            select(Content)
            .where(Content.collection_id == collection_id, Content.sha256.in_([sha256 for _, sha256 in digests]))
            .order_by(Content.id)
            .with_for_update()
        )
    }
    of_others = {content.run_id for content in found.values()} - {run_id}
    at_work = set(session.scalars(select(Run.id).where(Run.id.in_(of_others), Run.status == RunStatus.RUNNING.value)))
    claims = {}
    for image_id, sha256 in digests:
        content = found[sha256]
        ready = content.status == ContentStatus.DONE and content.recipe == recipe
        in_hand = content.status == ContentStatus.CLAIMED and content.run_id in at_work
        if not ready and not in_hand and content.run_id != run_id:
            content.run_id, content.owner_image_id = run_id, image_id
            content.status, content.recipe = ContentStatus.CLAIMED.value, recipe
        claims[image_id] = (content.id, not ready and content.owner_image_id == image_id)
    return claims
