"""The wall: photographs with their faces, in pages that stay where they are while others come and go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session, aliased

from infra.catalog.images import count_pending
from infra.catalog.queries import attributes
from infra.catalog.queries.filters import taken_since, taken_until
from infra.catalog.queries.language import clause, read_date
from infra.catalog.sides import by_rows, in_letters
from infra.catalog.tables.schema import (
    FINISHED,
    Attribute,
    Collection,
    Content,
    Face,
    FaceIdentity,
    Failure,
    Identity,
    Image,
    ImageStatus,
    Run,
)
from infra.catalog.versioning.versions import serving
from infra.catalog.work.runs import key_range

Order = Literal["newest", "oldest"]


@dataclass(frozen=True)
class PhotoFilter:
    """Which photographs are wanted; what is None or empty does not matter.

    `label`: (attribute, label); `taken_from` and `taken_to`: a year, month or day, included; `question`: in the language of
    questions, that some face of the photograph answers to; `reason`: of a failure that stands.
    """

    collection: str | None = None
    person: int | None = None
    text: str | None = None
    faces: Literal["with", "without"] | None = None
    min_quality: float | None = None
    label: tuple[str, str] | None = None
    taken_from: str | None = None
    taken_to: str | None = None
    question: str | None = None
    status: ImageStatus = ImageStatus.DONE
    order: Order = "newest"
    reason: str | None = None


@dataclass(frozen=True)
class BoxView:
    """Where a face is, in pixels of the upright original, and whose it is believed to be."""

    face_id: int
    box: tuple[float, float, float, float]
    quality: float
    identity_id: int | None
    identity_name: str | None


@dataclass(frozen=True)
class PhotoView:
    """A photograph: the first wanted key of its bytes, how many others hold the same, and its faces.

    `sha256`, `width`, `height` are None where it was never read.
    """

    image_id: int
    collection: str
    collection_uri: str
    key: str
    etag: str
    others: int
    status: str
    sha256: str | None
    width: int | None
    height: int | None
    taken_at: str | None
    faces: tuple[BoxView, ...]


def photographs(session: Session, wanted: PhotoFilter, after: int | None, limit: int) -> list[PhotoView]:
    """Photographs behind the image id `after`, each of its bytes once per collection.

    Raises:
        InvalidQuestion: if the question cannot be read.
    """
    direction = Image.id.desc() if wanted.order == "newest" else Image.id.asc()
    conditions = _conditions(session, wanted)
    if after is not None:
        conditions.append(Image.id < after if wanted.order == "newest" else Image.id > after)
    statement = (
        select(Image, Content, Collection.name, Collection.uri)
        .join(Collection, Collection.id == Image.collection_id)
        .outerjoin(Content, Content.id == Image.content_id)
        .where(*conditions)
        .order_by(direction)
        .limit(limit)
    )
    return _views(session, session.execute(statement).tuples().all())


def photograph(session: Session, image_id: int) -> PhotoView | None:
    """One photograph with its faces, whatever its status."""
    statement = (
        select(Image, Content, Collection.name, Collection.uri)
        .join(Collection, Collection.id == Image.collection_id)
        .outerjoin(Content, Content.id == Image.content_id)
        .where(Image.id == image_id)
    )
    found = _views(session, session.execute(statement).tuples().all())
    return found[0] if found else None


def digest(session: Session, image_id: int, hold: bool = False) -> str | None:
    """SHA-256 of a photograph's bytes; None if it is not there, or was never read.

    `hold`, in a writing transaction, keeps others from removing the photograph until that ends.
    """
    statement = select(Content.sha256).join(Image, Image.content_id == Content.id).where(Image.id == image_id)
    return session.scalar(statement.with_for_update(read=True, of=Image) if hold else statement)


def photograph_of_face(session: Session, face_id: int) -> int | None:
    """The image to show a face in: the first of its bytes that is still there."""
    statement = select(Image.id).join(Face, Face.content_id == Image.content_id).where(Face.id == face_id)
    return session.scalar(statement.order_by(Image.status == ImageStatus.MISSING.value, Image.id).limit(1))


def neighbours(session: Session, wanted: PhotoFilter, image_id: int) -> tuple[int | None, int | None]:
    """The photographs before and after one on the wall."""
    later = photographs(session, wanted, image_id, 1)
    other: Order = "oldest" if wanted.order == "newest" else "newest"
    turned = PhotoFilter(**{**vars(wanted), "order": other})
    earlier = photographs(session, turned, image_id, 1)
    return (earlier[0].image_id if earlier else None), (later[0].image_id if later else None)


def labels(session: Session) -> list[tuple[str, str]]:
    """The (attribute, label) pairs that some face has."""
    return [(name, label) for name in attributes.names(session) for label in attributes.labels(session, name)]


@dataclass(frozen=True)
class Progress:
    """How far a run has got: images it has finished, of all it will."""

    run_id: int
    status: str
    done: int
    total: int


def progress(session: Session, run_id: int) -> Progress | None:
    """How far a run has got, asked of the ledger: it does not matter in which process it works."""
    run = session.get(Run, run_id)
    if run is None:
        return None
    done = session.scalar(select(func.count()).select_from(Image).where(Image.run_id == run_id, FINISHED)) or 0
    pending = count_pending(session, run.collection_id, key_range(run)) if run.finished_at is None else 0
    return Progress(run_id, run.status, done, done + pending)


def _conditions(session: Session, wanted: PhotoFilter) -> list[ColumnElement[bool]]:
    first = aliased(Image)
    conditions: list[ColumnElement[bool]] = [
        *_of_key(session, Image, wanted),
        ~exists().where(first.content_id == Image.content_id, first.id < Image.id, *_of_key(session, first, wanted)),
    ]
    if wanted.collection:
        conditions.append(Collection.name == wanted.collection)
    for day in filter(None, (wanted.taken_from, wanted.taken_to)):
        read_date(day)
    if wanted.taken_from:
        conditions.append(taken_since(wanted.taken_from))
    if wanted.taken_to:
        conditions.append(taken_until(wanted.taken_to))
    of_photo = Face.content_id == Image.content_id
    if wanted.faces == "without":
        conditions.append(~exists().where(of_photo))
    elif wanted.faces == "with":
        conditions.append(exists().where(of_photo))
    if wanted.min_quality:
        conditions.append(exists().where(of_photo, Face.quality >= wanted.min_quality))
    if wanted.person is not None:
        members = select(Face.content_id).join(FaceIdentity, FaceIdentity.face_id == Face.id)
        conditions.append(Image.content_id.in_(members.where(FaceIdentity.identity_id == wanted.person)))
    if wanted.label is not None:
        name, label = wanted.label
        with_label = select(Face.content_id).join(Attribute, Attribute.face_id == Face.id)
        rows = with_label.where(Attribute.name == name, Attribute.label == label)
        each = exists().where(of_photo, attributes.given(session, name, Attribute.label == label)).correlate(Image)
        conditions.append(by_rows(session, Image.content_id, rows, each))
    if wanted.question:
        meant = clause(session, wanted.question)
        each = exists().where(of_photo, meant).correlate(Image)
        conditions.append(by_rows(session, Image.content_id, select(Face.content_id).where(meant), each))
    return conditions


def _of_key(session: Session, image: type[Image], wanted: PhotoFilter) -> list[ColumnElement[bool]]:
    """What the keys of the same bytes may answer differently: the first that fulfils it stands for them."""
    conditions = [image.status == wanted.status.value]
    if wanted.text:
        conditions.append(in_letters(session, image.key).icontains(wanted.text, autoescape=True))
    if wanted.reason:
        failed = Failure.image_id == image.id, Failure.reason == wanted.reason
        conditions.append(exists().where(*failed, Failure.resolved_at.is_(None)))
    return conditions


def _views(session: Session, rows: Sequence[tuple[Image, Content | None, str, str]]) -> list[PhotoView]:
    contents = [content.id for _, content, _, _ in rows if content is not None]
    boxes = _boxes(session, contents)
    counted = select(Image.content_id, func.count()).where(
        Image.content_id.in_(contents), Image.status != ImageStatus.MISSING.value
    )
    copies = dict(session.execute(counted.group_by(Image.content_id)).tuples().all())
    return [
        PhotoView(
            image_id=image.id,
            collection=name,
            collection_uri=uri,
            key=image.key,
            etag=image.etag,
            others=max(copies.get(image.content_id, 1) - 1, 0),
            status=image.status,
            sha256=None if content is None else content.sha256,
            width=None if content is None else content.width,
            height=None if content is None else content.height,
            taken_at=None if content is None else content.taken_at,
            faces=() if content is None else tuple(boxes.get(content.id, ())),
        )
        for image, content, name, uri in rows
    ]


def _boxes(session: Session, contents: Sequence[int]) -> dict[int, list[BoxView]]:
    version = serving(session)
    member = (FaceIdentity.face_id == Face.id) & (
        FaceIdentity.model_version_id == (None if version is None else version.id)
    )
    rows = session.execute(
        select(Face.content_id, Face.id, Face.x1, Face.y1, Face.x2, Face.y2, Face.quality, Identity.id, Identity.name)
        .outerjoin(FaceIdentity, member)
        .outerjoin(Identity, Identity.id == FaceIdentity.identity_id)
        .where(Face.content_id.in_(contents))
        .order_by(Face.content_id, Face.x1)
    ).tuples()
    found: dict[int, list[BoxView]] = {}
    for content, face, x1, y1, x2, y2, quality, identity, name in rows:
        found.setdefault(content, []).append(BoxView(face, (x1, y1, x2, y2), quality, identity, name))
    return found
