"""Erasing rows, and remembering by keyed hashes what must not be taken in again."""

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, func, not_, or_, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from infra.catalog.boxes import overlaps
from infra.catalog.custody import keyed
from infra.catalog.faults import CatalogUnreachable
from infra.catalog.identities.decisions import chunks, family, stated
from infra.catalog.identities.enforcement import drop_stale_proposals, refresh_exemplars
from infra.catalog.identities.people import remove_empty_identities
from infra.catalog.tables.custody import Errand, Exhibit, Holding, Outbox, Secret, Suppression
from infra.catalog.tables.people import DecidedMove, Decision, Person, Says, Statement
from infra.catalog.tables.schema import (
    Attribute,
    Content,
    Embedding,
    Erasure,
    Face,
    FaceIdentity,
    Failure,
    Identity,
    Image,
    MergeProposal,
    Restoration,
    Run,
    Schedule,
    Split,
    now,
)
from infra.catalog.tables.schema import Collection as CollectionRow
from infra.catalog.tables.service import IdempotencyKey
from infra.catalog.tables.upgrades import BackfillFailure
from infra.storage import Entry

SECRET = "erasure"
ERASED = "erased"  # the reason of a failure that stands for "not taken in again"
PERSONAL = (
    Face, Embedding, Restoration, Attribute, FaceIdentity, Statement, DecidedMove, MergeProposal, Person, Decision, Identity,
    Image, Content, Failure, BackfillFailure, Run, Schedule, Split, CollectionRow, Exhibit, IdempotencyKey, Outbox,
)  # fmt: skip


LOCK_SECONDS = 60  # how long rewriting a table waits for those who use it
SAME_FACE = 0.3  # intersection over union from which a face that another detector finds is the erased one


class NotScrubbed(RuntimeError):
    """What deleted rows left in the database's files could not be overwritten now."""


@dataclass(frozen=True)
class Region:
    """Where a face is in a photo: the photo's bytes, and the box (x1, y1, x2, y2)."""

    face_id: int
    collection_id: int
    content_id: int
    sha256: str
    box: tuple[float, float, float, float]


def regions(session: Session, face_ids: Collection[int]) -> list[Region]:
    """Where some faces are, in the order of their ids."""
    found: list[Region] = []
    for part in chunks(face_ids):
        rows = (
            select(Face, Content.collection_id, Content.sha256)
            .join(Content, Content.id == Face.content_id)
            .where(Face.id.in_(part))
            .order_by(Face.id)
        )
        found += [
            Region(face.id, collection, face.content_id, sha256, (face.x1, face.y1, face.x2, face.y2))
            for face, collection, sha256 in session.execute(rows).tuples()
        ]
    return found


def contents_of(images: Iterable[Image]) -> set[int]:
    """What some objects hold, and what they held before they broke."""
    return {content for i in images for content in (i.content_id, i.former_content_id) if content is not None}


def images_of(session: Session, content_ids: Collection[int]) -> list[Image]:
    """The objects that hold some contents, or held them before they broke."""
    found = dict[int, Image]()
    for part in chunks(content_ids):
        held = or_(Image.content_id.in_(part), Image.former_content_id.in_(part))
        found |= {image.id: image for image in session.scalars(select(Image).where(held).order_by(Image.key))}
    return list(found.values())


def digests(session: Session, content_ids: Collection[int]) -> list[str]:
    """SHA-256 of some contents."""
    return [
        sha256
        for part in chunks(content_ids)
        for sha256 in session.scalars(select(Content.sha256).where(Content.id.in_(part)))
    ]


def faces_in(session: Session, content_ids: Collection[int]) -> list[int]:
    """All faces of some contents."""
    return [
        face
        for part in chunks(content_ids)
        for face in session.scalars(select(Face.id).where(Face.content_id.in_(part)).order_by(Face.id))
    ]


def objects_of(session: Session, face_ids: Collection[int]) -> set[str]:
    """Keys of crops, restored pictures and masks of some faces."""
    keys: set[str] = set()
    for part in chunks(face_ids):
        keys.update(session.scalars(select(Face.crop_key).where(Face.id.in_(part))))
        keys.update(session.scalars(select(Restoration.crop_key).where(Restoration.face_id.in_(part))))
        masks = select(Attribute.mask_key).where(Attribute.face_id.in_(part), Attribute.mask_key.is_not(None))
        keys.update(key for key in session.scalars(masks) if key)
    return keys


def row_counts(session: Session, face_ids: Collection[int]) -> dict[str, int]:
    """How many rows hang on some faces, by table."""
    counts: dict[str, int] = {}
    for entity in (Embedding, Attribute, Restoration, FaceIdentity, Statement):
        counts[entity.__tablename__] = sum(
            session.scalar(select(func.count()).select_from(entity).where(entity.face_id.in_(part))) or 0
            for part in chunks(face_ids)
        )
    return counts


def runs_of(session: Session, collection_ids: Collection[int]) -> list[Run]:
    """All runs on some collections."""
    return list(session.scalars(select(Run).where(Run.collection_id.in_(collection_ids)).order_by(Run.id)))


def forget_faces(session: Session, face_ids: Collection[int], persons: Collection[int] = ()) -> None:
    """Delete faces with all rows that hang on them.

    Of whom no face is left then, the name and what was decided go too: of `persons` (roots), and of whoever these faces were
    ever said to be, or not to be. So do names whose naming was undone, if nothing tells any more whose they were.
    """
    touched, roots = set[int](), set(persons)
    for part in chunks(face_ids):
        held = select(FaceIdentity.identity_id).where(FaceIdentity.face_id.in_(part))
        touched.update(identity for identity in session.scalars(held) if identity is not None)
        roots |= _persons_about(session, part)
        session.execute(delete(Face).where(Face.id.in_(part)).execution_options(synchronize_session=False))
    for root in roots:
        _forget_person(session, root)
    of_nobody = Decision.person_id.is_(None), Decision.name.is_not(None)
    session.execute(update(Decision).where(*of_nobody).values(name=None))
    refresh_exemplars(session, touched)
    drop_stale_proposals(session)
    remove_empty_identities(session)
    session.execute(delete(IdempotencyKey))  # answers kept for repeated requests


def _persons_about(session: Session, face_ids: Sequence[int]) -> set[int]:
    """Whom places, statements, decisions and moves of some faces are about, by their roots."""
    said, moved = Statement.face_id.in_(face_ids), DecidedMove.face_id.in_(face_ids)
    of_decision = select(Decision.person_id, Decision.other_id)
    about = (
        select(Identity.person_id)
        .join(FaceIdentity, FaceIdentity.identity_id == Identity.id)
        .where(FaceIdentity.face_id.in_(face_ids)),
        select(Identity.person_id).join(DecidedMove, DecidedMove.former_identity_id == Identity.id).where(moved),
        select(Statement.person_id).where(said),
        of_decision.join(Statement, Statement.decision_id == Decision.id).where(said),
        of_decision.join(DecidedMove, DecidedMove.decision_id == Decision.id).where(moved),
    )
    persons = {person for rows in about for row in session.execute(rows.distinct()) for person in row if person}
    return {
        root
        for part in chunks(persons)
        for root in session.scalars(select(Person.root_id).where(Person.id.in_(part)))
        if root is not None
    }


def _forget_person(session: Session, root: int) -> None:
    """Forget a person, if no face is left of them: the decisions stay as rows, without names and without whom they meant."""
    persons = family(session, root)
    shown = exists().where(FaceIdentity.identity_id == Identity.id, Identity.person_id.in_(persons))
    confirmed = exists().where(stated(Says.IS, persons))
    if session.scalar(select(or_(shown, confirmed))):
        return
    about = or_(Decision.person_id.in_(persons), Decision.other_id.in_(persons))
    session.execute(update(Decision).where(about).values(name=None))
    session.execute(update(Identity).where(Identity.person_id.in_(persons)).values(name=None, person_id=None))
    session.execute(update(Person).where(Person.id.in_(persons)).values(root_id=None))
    session.execute(delete(Person).where(Person.id.in_(persons)))
    session.expire_all()


def forget_images(session: Session, images: Sequence[Image]) -> None:
    """Delete objects' rows with their failures, and the contents that no other object holds."""
    contents = contents_of(images)
    for image in images:
        same = Failure.collection_id == image.collection_id, Failure.key == image.key
        session.execute(delete(Failure).where(or_(Failure.image_id == image.id, same[0] & same[1])))
        session.delete(image)
    session.flush()
    for part in chunks(contents):
        held = exists().where(or_(Image.content_id == Content.id, Image.former_content_id == Content.id))
        session.execute(
            delete(Content).where(Content.id.in_(part), not_(held)).execution_options(synchronize_session=False)
        )
    session.expire_all()


# --- What must not return


def suppress_object(session: Session, erasure_id: int, image: Image) -> None:
    """Do not take an object in again as it is listed now."""
    key = keyed.secret(session, SECRET)
    digest = keyed.digest(key, "object", image.collection_id, image.key, image.etag, image.size)
    session.add(Suppression(collection_id=image.collection_id, digest=digest, erasure_id=erasure_id))


def suppress_content(
    session: Session, erasure_id: int, collection_id: int, sha256: str, box: Sequence[float] | None = None
) -> None:
    """Do not take these bytes in again, under whatever key; with a box: not the face that is there."""
    key = keyed.secret(session, SECRET)
    session.add(
        Suppression(
            collection_id=collection_id,
            digest=keyed.digest(key, "content", collection_id, sha256),
            box=None if box is None else [float(v) for v in box],
            erasure_id=erasure_id,
        )
    )


def suppressions(session: Session, collection_id: int) -> list[tuple[str, list[float] | None]]:
    """Everything of a collection that must not return: keyed hash, and the box if only a face is meant."""
    wanted = Suppression.collection_id.in_(_heeded(session, collection_id))
    return list(
        session.execute(select(Suppression.digest, Suppression.box).where(wanted).order_by(Suppression.id)).tuples()
    )


def _heeded(session: Session, collection_id: int) -> list[int]:
    """The collections whose erasures hold for one: its own, and those that were removed before it was added.

    It may hold the same photographs, under whatever name and in whatever place.
    """
    added = select(CollectionRow.created_at).where(CollectionRow.id == collection_id).scalar_subquery()
    erased = exists().where(Suppression.collection_id == CollectionRow.id)
    earlier = select(CollectionRow.id).where(CollectionRow.removed_at <= added, erased).order_by(CollectionRow.id)
    return [collection_id, *session.scalars(earlier)]


def inherit(
    session: Session,
    erasure_id: int,
    collection_id: int,
    keys: Sequence[tuple[bytes, int]],
    found: Iterable[tuple[str, list[float] | None]],
) -> int:
    """Do not take in what was erased where a collection comes from; returns how many hashes that are.

    They were made there: `keys` are the secrets of those catalogs, each with the number that the collection had.
    """
    rows = [
        Suppression(collection_id=collection_id, digest=digest, box=box, erasure_id=erasure_id) for digest, box in found
    ]
    session.add_all(rows)
    for number, (key, of) in enumerate(keys) if rows else ():
        session.add(Secret(name=f"{_inherited(collection_id)}{number}", value=key + str(of).encode()))
    session.flush()
    return len(rows)


def _inherited(collection_id: int) -> str:
    return f"{SECRET} of {collection_id} from "


class Erased:
    """What was erased from a collection, asked while its objects are listed and read; costs nothing where nothing was.

    `keys`: what the hashes were made with, each with the number of the collection then: this catalog's secret, and those of
    catalogs that the collection was taken over from; likewise for collections that were removed before it was added.
    """

    def __init__(self, session: Session, collection_id: int) -> None:
        own = keyed.known_secret(session, SECRET)
        heeded = _heeded(session, collection_id)
        self.keys = [] if own is None else [(own, number) for number in heeded]
        for number in heeded:
            inherited = select(Secret.value).where(Secret.name.startswith(_inherited(number), autoescape=True))
            for value in session.scalars(inherited.order_by(Secret.name)):
                self.keys.append((value[: keyed.LENGTH], int(value[keyed.LENGTH :])))
        self.whole: set[str] = set()
        self.boxes: dict[str, list[list[float]]] = {}
        for digest, box in suppressions(session, collection_id):
            if box is None:
                self.whole.add(digest)
            else:
                self.boxes.setdefault(digest, []).append(box)

    def object(self, entry: Entry) -> bool:
        """Whether an object was erased as it is listed."""
        return bool(self.whole) and any(
            keyed.digest(key, "object", of, entry.key, entry.etag, entry.size) in self.whole for key, of in self.keys
        )

    def content(self, sha256: str) -> bool:
        """Whether these bytes were erased."""
        return bool(self.whole) and any(digest in self.whole for digest in self._of(sha256))

    def faces(self, sha256: str, boxes: np.ndarray) -> np.ndarray:
        """Which faces (N,) bool of a photo were erased from it, by their boxes (N, 4)."""
        erased = [box for digest in self._of(sha256) for box in self.boxes.get(digest, [])] if self.boxes else []
        if not erased:
            return np.zeros(len(boxes), bool)
        return np.any(overlaps(boxes, np.array(erased)) >= SAME_FACE, axis=1)

    def _of(self, sha256: str) -> list[str]:
        return [keyed.digest(key, "content", of, sha256) for key, of in self.keys]


def drop_returned(session: Session, collection_id: int) -> set[str]:
    """Forget objects that came back with erased bytes, as the last run found.

    Returns the crops of what they held before, to which nothing refers any more.
    """
    returned = list(
        session.scalars(
            select(Image)
            .join(Failure, Failure.image_id == Image.id)
            .where(Failure.collection_id == collection_id, Failure.reason == ERASED)
            .distinct()
        )
    )
    if not returned:
        return set()
    heeded = Suppression.collection_id.in_(_heeded(session, collection_id))
    erasure_id = session.scalar(select(func.max(Suppression.erasure_id)).where(heeded))
    for image in returned:
        suppress_object(session, erasure_id or 0, image)
    faces = faces_in(session, contents_of(returned))
    crops = objects_of(session, faces)
    forget_images(session, returned)
    return crops - objects_of(session, faces)


# --- The outbox


def post_scrub(session: Session, erasure_id: int) -> None:
    """Have the database's files scrubbed after the transaction."""
    session.add(Outbox(erasure_id=erasure_id, errand=Errand.SCRUB.value, place=""))


def open_errands(
    session: Session, home_id: int | None, after: int = 0, limit: int = 500
) -> list[tuple[Outbox, str | None]]:
    """What is left to do in a home, or anywhere, in order, with the address of its place; scrubbing comes last."""
    scrub, anywhere = Outbox.errand == Errand.SCRUB.value, Holding.home_id.is_(None)
    ours = anywhere if home_id is None else or_(anywhere, Holding.home_id == home_id)
    errands = select(Outbox, Holding.address).outerjoin(Holding, Holding.id == Outbox.holding_id)
    found = errands.where(not_(scrub), ours, Outbox.id > after).order_by(Outbox.id).limit(limit)
    return list(session.execute(found).tuples())


def scrubs(session: Session) -> list[int]:
    """Erasures whose rows are gone, but not yet what they left in the database's files."""
    return list(session.scalars(select(Outbox.erasure_id).where(Outbox.errand == Errand.SCRUB.value)))


def done(session: Session, errands: Collection[int]) -> None:
    session.execute(delete(Outbox).where(Outbox.id.in_(errands)))


def close(session: Session, scrubbed: Collection[int]) -> None:
    """Note which erasures have been scrubbed, and complete the certificates of which nothing is left to do."""
    scrub: ColumnElement[bool] = Outbox.errand == Errand.SCRUB.value
    session.execute(delete(Outbox).where(scrub, Outbox.erasure_id.in_(scrubbed)))
    left = exists().where(Outbox.erasure_id == Erasure.id)
    session.execute(update(Erasure).where(Erasure.completed_at.is_(None), not_(left)).values(completed_at=now()))


def certificates(session: Session, limit: int, before: int | None = None) -> list[Erasure]:
    """Erasures, the latest first."""
    statement = select(Erasure).order_by(Erasure.id.desc()).limit(limit)
    return list(session.scalars(statement if before is None else statement.where(Erasure.id < before)))


def scrub(engine: Engine) -> None:
    """Overwrite what deleted rows left in the database's files.

    SQLite rewrites the file and empties the write-ahead log. PostgreSQL rewrites the tables (nobody else can use them
    meanwhile) and its statistics, which hold samples of their values; its own write-ahead log and backups are beyond us.

    Raises:
        NotScrubbed: if other connections are in the way.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()  # from the pool: nobody else is to have its settings
            try:
                connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
                for entity in PERSONAL:
                    connection.execute(text(f"VACUUM (FULL, ANALYZE) {entity.__tablename__}"))
                _scrub_statistics(connection)
            except (CatalogUnreachable, OperationalError) as error:
                raise NotScrubbed(
                    f"a table could not be rewritten; another connection may be using it: {error}"
                ) from error
        return
    raw = engine.raw_connection()  # outside of any transaction
    try:
        cursor = raw.cursor()
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        busy = next(iter(cursor.fetchall()))[0]
    except sqlite3.OperationalError as error:
        raise NotScrubbed(f"another process is using the catalog: {error}") from error
    finally:
        raw.close()
    if busy:
        raise NotScrubbed("another process reads the catalog and keeps its write-ahead log from being emptied")


def _scrub_statistics(connection: Connection) -> None:
    """Have PostgreSQL forget the samples of values that it has replaced, and those of tables that are empty now.

    The first takes the owner of the database, the second a superuser: PostgreSQL never samples an empty table anew.
    """
    if connection.scalar(text("SELECT current_setting('is_superuser')::bool")):
        connection.execute(
            text(
                "DELETE FROM pg_statistic USING pg_class WHERE oid = starelid AND reltuples = 0 "
                "AND relnamespace = current_schema()::regnamespace"
            )
        )
    connection.execute(text("VACUUM (FULL) pg_statistic"))
