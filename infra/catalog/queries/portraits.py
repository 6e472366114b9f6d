"""People for looking at: a grid by count, one person's faces, proposals with their evidence."""

from dataclasses import dataclass

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session

from infra.catalog.identities import decisions
from infra.catalog.tables.people import Person
from infra.catalog.tables.schema import Face, FaceIdentity, Identity
from infra.catalog.versioning.versions import serving


@dataclass(frozen=True)
class PersonView:
    """A person with the face that shows them best."""

    identity_id: int
    name: str | None
    faces: int
    photos: int
    cover_face_id: int | None


def people(
    session: Session, min_faces: int, named: bool | None, text: str | None, after: tuple[int, ...] | None, limit: int
) -> list[PersonView]:
    """People by the number of their faces, most first, behind the place (faces, identity id); none who is to be ignored."""
    version = serving(session)
    if version is None:
        return []
    faces = func.count(FaceIdentity.face_id)
    statement = _counted(version.id).having(faces >= min_faces)
    ignored = select(Person.id).where(Person.ignored)
    statement = statement.where(or_(Identity.person_id.is_(None), Identity.person_id.not_in(ignored)))
    if named is not None:
        statement = statement.where(Identity.name.is_not(None) if named else Identity.name.is_(None))
    if text is not None:
        statement = statement.where(Identity.name.icontains(text, autoescape=True))
    if after is not None:
        statement = statement.having(or_(faces < after[0], and_(faces == after[0], Identity.id > after[1])))
    rows = session.execute(statement.order_by(faces.desc(), Identity.id).limit(limit)).tuples().all()
    return _views(session, list(rows))


def person(session: Session, identity_id: int) -> PersonView | None:
    """One person, of whatever embedding version, or whoever they were merged into; None if there is none."""
    try:
        identity = decisions.identity(session, identity_id)
    except decisions.UnknownSubject:
        return None
    rows = session.execute(_counted(identity.model_version_id).where(Identity.id == identity.id)).tuples().all()
    views = _views(session, list(rows))
    return views[0] if views else PersonView(identity.id, identity.name, 0, 0, None)


def known_as(session: Session, beside: int, name: str, number: int | None) -> list[Identity]:
    """The identities of this name or number, of the embedding version that the identity `beside` them is of.

    Raises:
        UnknownSubject: if there is no identity `beside`.
    """
    version = decisions.identity(session, beside).model_version_id
    meant = or_(Identity.name == name, Identity.id == number)
    return list(
        session.scalars(select(Identity).where(Identity.model_version_id == version, meant).order_by(Identity.id))
    )


def _counted(version_id: int) -> Select[tuple[int, str | None, int]]:
    """Identities with the number of their faces: from the memberships alone, which an index holds in order."""
    return (
        select(Identity.id, Identity.name, func.count(FaceIdentity.face_id))
        .join(FaceIdentity, FaceIdentity.identity_id == Identity.id)
        .where(FaceIdentity.model_version_id == version_id)
        .group_by(Identity.id, Identity.name)
    )


def _views(session: Session, rows: list[tuple[int, str | None, int]]) -> list[PersonView]:
    """With the number of their photographs and the best face, which only those shown are asked for."""
    ids = [row[0] for row in rows]
    in_photos = (
        select(FaceIdentity.identity_id, func.count(func.distinct(Face.content_id)))
        .join(Face, Face.id == FaceIdentity.face_id)
        .where(FaceIdentity.identity_id.in_(ids))
        .group_by(FaceIdentity.identity_id)
    )
    photos = dict(session.execute(in_photos).tuples().all())
    best = (
        select(
            FaceIdentity.identity_id,
            FaceIdentity.face_id,
            func.row_number()
            .over(partition_by=FaceIdentity.identity_id, order_by=(Face.quality.desc(), Face.id))
            .label("rank"),
        )
        .join(Face, Face.id == FaceIdentity.face_id)
        .where(FaceIdentity.identity_id.in_(ids))
        .subquery()
    )
    statement = select(best.c.identity_id, best.c.face_id).where(best.c.rank == 1)
    covers = dict(session.execute(statement).tuples().all())
    return [PersonView(i, name, faces, photos.get(i, 0), covers.get(i)) for i, name, faces in rows]
