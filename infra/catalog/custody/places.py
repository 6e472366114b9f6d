"""Places: where content of the catalog lies outside of its database, on whatever machine, so that an erasure reaches it all.

Every process enters what its settings name before it writes there. Errands of an erasure are done where their place is: by
any process of the same home folder, or, if a place is shared as a bucket is, by any process of the catalog.
"""

import shutil
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from filelock import FileLock
from sqlalchemy import delete, exists, func, insert, make_url, not_, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from infra.catalog.chunks import chunks
from infra.catalog.database import Catalog
from infra.catalog.statements import exclusive, table_of
from infra.catalog.tables.custody import Errand, Holding, Home, Keeps, Outbox
from infra.catalog.tables.schema import Erasure, now
from infra.settings import Settings

TOKEN = "home-id"  # the file by which a home folder is known again, whatever its machine is called
SEEN_AGAIN = timedelta(hours=1)
LOCK = "places"
UNREACHED = "unreached"  # counted on certificates
TRAINED_ON = "training/*/faces"  # in a home folder: found in pictures, and found again when the training goes on


class UnknownPlace(LookupError):
    """There is no place of that number."""


@dataclass(frozen=True)
class Place:
    """A place with the home that it belongs to (None: shared), and how many errands wait there."""

    place_id: int
    keeps: Keeps
    address: str
    home_id: int | None
    host: str | None
    folder: str | None
    seen_at: datetime | None
    errands: int


def enter(catalog: Catalog, settings: Settings, *keeps: Keeps) -> None:
    """Say that what these settings name may hold content from now on. Writes only if that, or the hour, is new."""
    with catalog.read() as session:
        home = _home(session, settings)
        known = [_known(session, home, settings, kind) for kind in keeps]
    fresh = home is None or now() - home.seen_at < SEEN_AGAIN
    if fresh and None not in known:
        return
    with catalog.write() as session:
        for kind in keeps:
            entered(session, settings, kind)


def enter_what_is_there(catalog: Catalog, settings: Settings) -> None:
    """Enter what these settings name, if content may lie there, as in a home folder from before there was this register."""
    enter(catalog, settings, *(kind for kind in Keeps if kind != Keeps.EXHIBITS and _may_hold(settings, kind)))


def index_here(catalog: Catalog, settings: Settings) -> None:
    """Enter that this home may keep a search index, if this catalog's database has none of its own."""
    if catalog.engine.dialect.name == "sqlite":
        enter(catalog, settings, Keeps.CACHE)


def entered(session: Session, settings: Settings, kind: Keeps) -> Holding:
    """The place of a kind that these settings name, entered if it is new.

    A cache that is new begins empty where anything was ever erased: it may show that, from before it was entered or forgotten.
    """
    exclusive(session, LOCK)
    address, home = address_of(settings, kind), None
    if not _shared(kind, address):
        home = _home(session, settings) or Home(token=_new_token(session, settings.home_folder))
        home.host, home.folder, home.seen_at = socket.gethostname(), str(settings.home_folder), now()
        session.add(home)
        session.flush()
    found = _known(session, home, settings, kind)
    if found is None:
        if kind == Keeps.CACHE and session.scalar(select(exists(Erasure.id))):
            for folder in _caches(settings):
                shutil.rmtree(folder, ignore_errors=True)
        found = Holding(home_id=None if home is None else home.id, keeps=kind.value, address=address)
        session.add(found)
        session.flush()
    return found


def here(session: Session, settings: Settings) -> int | None:
    """The number of this home, if it was ever entered."""
    home = _home(session, settings)
    return None if home is None else home.id


def every(session: Session) -> list[Place]:
    """All places, those of a home together, with what waits there."""
    waiting = select(func.count()).where(Outbox.holding_id == Holding.id).scalar_subquery()
    rows = select(Holding, Home, waiting).outerjoin(Home, Home.id == Holding.home_id)
    return [_place(*row) for row in session.execute(rows.order_by(Home.id, Holding.id)).tuples()]


def waiting_elsewhere(session: Session, home_id: int | None, erasure_id: int | None = None) -> list[Place]:
    """Places of other homes than this one where errands wait, of one erasure or of all."""
    of_erasure = () if erasure_id is None else (Outbox.erasure_id == erasure_id,)
    elsewhere = Home.id.is_distinct_from(home_id)
    rows = (
        select(Holding, Home, func.count())
        .join(Home, Home.id == Holding.home_id)
        .join(Outbox, Outbox.holding_id == Holding.id)
        .where(elsewhere, *of_erasure)
        .group_by(Holding.id, Home.id)
    )
    return [_place(*row) for row in session.execute(rows.order_by(Home.id, Holding.id)).tuples()]


def forget(session: Session, place_id: int) -> int:
    """Forget a place that is no more; returns how many errands will never be done, which their certificates say.

    Raises:
        UnknownPlace: if there is none.
    """
    found = session.get(Holding, place_id)
    if found is None:
        raise UnknownPlace(f"no place {place_id}; 'visage places list' shows those there are")
    counts = select(Outbox.erasure_id, func.count()).where(Outbox.holding_id == place_id).group_by(Outbox.erasure_id)
    undone = dict(session.execute(counts).tuples().all())
    for erasure_id, count in undone.items():
        erasure = session.get_one(Erasure, erasure_id)
        erasure.counts = {**erasure.counts, UNREACHED: erasure.counts.get(UNREACHED, 0) + count}
    session.delete(found)
    session.flush()
    left = exists().where(Holding.home_id == Home.id)
    session.execute(delete(Home).where(not_(left)).execution_options(synchronize_session=False))
    return sum(undone.values())


def post(session: Session, erasure_id: int, errand: Errand, kind: Keeps, names: Iterable[str]) -> None:
    """Leave errands about what lies under some names, for every place that keeps something of a kind."""
    names = set(names)
    for holding in session.scalars(select(Holding.id).where(Holding.keeps == kind.value).order_by(Holding.id)).all():
        what = {"erasure_id": erasure_id, "errand": errand.value, "holding_id": holding}
        for part in chunks(names):
            session.execute(insert(table_of(Outbox)), [{**what, "place": name} for name in part])


def address_of(settings: Settings, kind: Keeps) -> str:
    """Where these settings keep something of a kind, without a password; empty: in the home folder, wherever that is moved."""
    if kind == Keeps.OBJECTS and settings.objects_uri:
        uri = settings.objects_uri
        return uri if "://" in uri else str(Path(uri).expanduser().absolute())
    if kind == Keeps.REPORTS and settings.tracking_uri:
        try:
            return make_url(settings.tracking_uri).render_as_string(hide_password=True)
        except ArgumentError:
            return settings.tracking_uri
    return ""


def at(settings: Settings, address: str) -> Settings:
    """The settings under which what lies at an address is reached: with their own password, if the address is theirs."""
    reports = settings.tracking_uri if address == address_of(settings, Keeps.REPORTS) else address
    return settings.model_copy(update={"objects_uri": address, "tracking_uri": reports})


def _shared(kind: Keeps, address: str) -> bool:
    """Whether a place is the same from every machine. MLflow keeps files in a home folder, if not on a server."""
    return address.startswith("s3://" if kind == Keeps.OBJECTS else ("http://", "https://"))


def _known(session: Session, home: Home | None, settings: Settings, kind: Keeps) -> Holding | None:
    address = address_of(settings, kind)
    if home is None and not _shared(kind, address):
        return None
    owner = None if home is None or _shared(kind, address) else home.id
    same = Holding.home_id.is_not_distinct_from(owner), Holding.keeps == kind.value, Holding.address == address
    return session.scalars(select(Holding).where(*same)).first()


def _may_hold(settings: Settings, kind: Keeps) -> bool:
    address = address_of(settings, kind)
    if "://" in address:
        return True
    folders = {
        Keeps.OBJECTS: [Path(settings.crops_uri).expanduser()],
        Keeps.REPORTS: [settings.artifacts_folder],
        Keeps.CACHE: _caches(settings),
    }
    return any(folder.exists() for folder in folders[kind])


def _caches(settings: Settings) -> list[Path]:
    """Folders of a home that fill by themselves."""
    home = settings.home_folder
    return [home / "thumbnails", home / "index", *home.glob(TRAINED_ON)]


def _home(session: Session, settings: Settings) -> Home | None:
    token = _token(settings.home_folder)
    home = None if token is None else session.scalar(select(Home).where(Home.token == token))
    return None if home is None or _is_copied(home, settings.home_folder) else home


def _place(holding: Holding, home: Home | None, errands: int) -> Place:
    return Place(
        place_id=holding.id,
        keeps=Keeps(holding.keeps),
        address=holding.address,
        home_id=holding.home_id,
        host=None if home is None else home.host,
        folder=None if home is None else home.folder,
        seen_at=None if home is None else home.seen_at,
        errands=errands,
    )


def _new_token(session: Session, folder: Path) -> str:
    """What a home folder that the catalog does not know is known by from now on; what another bears already is not taken."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / TOKEN
    with FileLock(folder / f"{TOKEN}.lock"):
        token = _token(folder)
        if token is None or session.scalar(select(Home.id).where(Home.token == token)) is not None:
            token = uuid.uuid4().hex
            file.write_text(f"{token}\n", encoding="ascii")
    return token


def _token(folder: Path) -> str | None:
    file = folder / TOKEN
    return file.read_text(encoding="ascii").strip() if file.is_file() else None


def _is_copied(home: Home, folder: Path) -> bool:
    """Whether a folder bears a home's token because it is a copy of it: a home that was moved is not there any more."""
    first = Path(home.folder)
    return _token(first) == home.token and not first.samefile(folder)
