"""Where collections are cut, so that several runs can share one."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog.statements import upsert
from infra.catalog.tables.schema import Collection, Split, now
from infra.catalog.work.runs import RunInProgress, close_dead_runs


def boundaries(session: Session, collection_id: int, parts: int) -> list[str] | None:
    """The keys at which a collection is cut into so many parts; None if it never was."""
    found = session.get(Split, (collection_id, parts))
    return None if found is None else found.boundaries


def keep(session: Session, collection_id: int, parts: int, cuts: Sequence[str], anew: bool) -> list[str]:
    """Keep the cuts, unless others have been made meanwhile and none are wanted anew; returns those that hold.

    Raises:
        RunInProgress: if they are wanted anew while a run is at work: its part would not be what it was.
    """
    session.execute(select(Collection.id).where(Collection.id == collection_id).with_for_update())
    at_work = close_dead_runs(session, collection_id) if anew else []
    if at_work:
        raise RunInProgress(
            f"run {at_work[0].id} is at work on this collection; cut it anew once it has ended", waiting_helps=False
        )
    row = {"collection_id": collection_id, "parts": parts, "boundaries": list(cuts), "created_at": now()}
    upsert(session, Split, [row], ["collection_id", "parts"], ["boundaries", "created_at"] if anew else [])
    return session.get_one(Split, (collection_id, parts), populate_existing=True).boundaries
