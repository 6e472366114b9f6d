"""Exhibits: files outside the catalog that show or hold faces. Noted, so that an erasure removes them and nothing else.

Each bears a mark that only this catalog can make, and for no other place: among the first bytes of a file, or in a file of its
own in a folder. What lies in an exhibit's place without its mark is not ours.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from infra.catalog.custody import keyed, places
from infra.catalog.database import Catalog
from infra.catalog.identities.enforcement import PEOPLE
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import Errand, Exhibit, Keeps, Outbox
from infra.settings import Settings

MARK = ".visage"  # the file in a folder that bears its mark
HEAD = 4096  # bytes at the beginning of a file among which its mark is
SECRET = "exhibit"


class NotOurs(RuntimeError):
    """What lies in an exhibit's place does not bear its mark."""


@dataclass(frozen=True)
class Noted:
    """An exhibit that is remembered, and about to be written. `mark`: what it must bear."""

    exhibit_id: int
    place: Path
    mark: str


def note(session: Session, settings: Settings, kind: str, place: Path, collection_id: int | None) -> Noted:
    """Remember a file or folder that is about to be written. Without a collection it may show anybody.

    Read what it is to show afterwards: an erasure knows of it, or what was erased is not there any more.
    """
    exclusive(session, PEOPLE)
    absolute = place.absolute()
    exhibit = Exhibit(
        kind=kind,
        errand=Errand.FILE.value,
        place=str(absolute),
        collection_id=collection_id,
        holding_id=places.entered(session, settings, Keeps.EXHIBITS).id,
    )
    session.add(exhibit)
    session.flush()
    return Noted(exhibit.id, absolute, keyed.digest(keyed.secret(session, SECRET), exhibit.place))


def make_folder(session: Session, settings: Settings, kind: str, folder: Path, collection_id: int | None) -> Noted:
    """Make a new folder, remember it and mark it.

    Raises:
        FileExistsError: if something is there already.
    """
    folder.mkdir(parents=True)
    noted = note(session, settings, kind, folder, collection_id)
    about = "Visage wrote this folder. An erasure removes it with all that is in it."
    (folder / MARK).write_text(f"{about}\n{noted.mark}\n")
    return noted


@contextmanager
def written(catalog: Catalog, *noted: Noted) -> Iterator[None]:
    """Write exhibits; what is not there afterwards is forgotten, for what comes to lie in its place is somebody else's."""
    try:
        yield
    finally:
        missing = [exhibit.exhibit_id for exhibit in noted if not exhibit.place.exists()]
        if missing:
            with catalog.write() as session:
                session.execute(delete(Exhibit).where(Exhibit.id.in_(missing)))


@contextmanager
def whole(catalog: Catalog, folder: Noted) -> Iterator[None]:
    """Fill a folder that was made; if that fails, nothing is left of it."""
    with written(catalog, folder):
        try:
            yield
        except BaseException:
            remove(folder.place)
            raise


def stands(session: Session, noted: Noted) -> bool:
    """Whether no erasure has had an exhibit deleted since it was noted, nor does before this transaction has ended."""
    exclusive(session, PEOPLE)
    return session.get(Exhibit, noted.exhibit_id) is not None


def concerning(session: Session, collection_ids: Collection[int]) -> list[Exhibit]:
    """Exhibits that may show faces of some collections."""
    showing = or_(Exhibit.collection_id.is_(None), Exhibit.collection_id.in_(collection_ids))
    return list(session.scalars(select(Exhibit).where(showing).order_by(Exhibit.place)))


def post_concerning(session: Session, erasure_id: int, collection_ids: Collection[int]) -> None:
    """Have an erasure delete the exhibits that may show faces of some collections, and forget them."""
    for exhibit in concerning(session, collection_ids):
        session.add(
            Outbox(
                erasure_id=erasure_id,
                errand=exhibit.errand,
                place=exhibit.place,
                holding_id=exhibit.holding_id,
            )
        )
        session.delete(exhibit)


def known_mark(session: Session, place: str) -> str | None:
    """The mark of an exhibit; none if this catalog has never marked any."""
    secret = keyed.known_secret(session, SECRET)
    return None if secret is None else keyed.digest(secret, place)


def remove_marked(place: str, mark: str | None) -> None:
    """Delete an exhibit. One that is gone already is no error.

    Raises:
        NotOurs: if what lies there does not bear the mark.
    """
    path = Path(place).resolve()
    if not path.exists():
        return
    if not _bears(path, mark):
        raise NotOurs(
            "this does not bear the mark of what Visage wrote here: it is something else, or an earlier Visage made it. "
            "Delete it; if it is yours, move it away. Then run 'visage retention'"
        )
    for part in path.iterdir() if path.is_dir() else ():
        if part.name != MARK:  # which goes last, so that a second attempt still finds it
            remove(part)
    remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bears(path: Path, mark: str | None) -> bool:
    file = path / MARK if path.is_dir() else path
    if mark is None or not file.is_file():
        return False
    with file.open("rb") as content:
        return mark.encode() in content.read(HEAD)
