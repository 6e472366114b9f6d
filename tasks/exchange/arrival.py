"""The rows of an archive enter a catalog, in the caller's one transaction, under numbers of this catalog."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlalchemy.orm import Session

from infra.archive_file import ArchiveReader, InvalidArchive
from infra.catalog.custody import erasing
from infra.catalog.exchange.portable import CARRIED, Carried
from infra.catalog.exchange.renumbering import DanglingReference, Renumbering
from infra.catalog.faults import NumberTooLarge, UnstorableText
from infra.catalog.search.vectors import create_index
from infra.catalog.tables.schema import Content, Erasure, Face, Image, ModelVersion, now
from infra.catalog.versioning.upgrades import lacks
from infra.catalog.versioning.versions import serve_when_complete, serving_id
from infra.catalog.visibility import visible
from models.spec import Role
from tasks.exchange.archive_contents import BY_NAME, OBJECT_KEYS, HeldBack, Places, erased_there, rows_of
from tasks.exchange.arrow_rows import column

NUMBERED = [carried for carried in CARRIED if "id" in carried.table.columns]
OF_A_FACE = ("embedding", "restoration", "attribute")  # not even entered where the face was erased here


@dataclass(frozen=True)
class Arrived:
    """How much was entered. `lacking`: faces that queries cannot find, because their version here has not embedded them."""

    photos: int
    faces: int
    identities: int
    lacking: int


def enter_rows(
    session: Session, file: ArchiveReader, collection_id: int, run_id: int, who: str, where: Places, held: HeldBack
) -> Arrived:
    """Enter everything of an archive but its collection, which is there; to be called while `SERVING` and `PEOPLE` are held.

    Raises:
        InvalidArchive: if the rows do not fit together.
    """
    numbers = Renumbering(session, {"run": run_id, "image": 0})
    try:
        (before,) = column(file.tables["collection"], "id")
        numbers.are("collection", {before: collection_id})
        dimensions = _enter_versions(session, file, numbers)
        for carried in NUMBERED:
            if carried.name not in ("collection", "model_version"):
                numbers.reserve(carried.table, _numbers_in(file, carried))
        counts = {
            carried.name: _enter(session, file, carried, numbers, where, held, dimensions)
            for carried in CARRIED
            if carried.name not in ("collection", "model_version")
        }
        session.flush()
    except (IntegrityError, DataError, NumberTooLarge, UnstorableText, DanglingReference) as error:
        reason = error.orig if isinstance(error, IntegrityError | DataError) else error
        raise InvalidArchive(f"{file.path}: its rows do not fit together: {reason}") from error
    except StatementError as error:
        if type(error) is not StatementError:  # the database itself
            raise
        raise InvalidArchive(f"{file.path}: {error.orig}") from error
    _keep_out(session, file, collection_id, who, numbers, held)
    _serve(session, file, dimensions)
    return Arrived(
        counts["image"] - len(held.images),
        counts["face"] - len(held.faces),
        counts["identity"],
        _lacking(session, collection_id),
    )


def _numbers_in(file: ArchiveReader, carried: Carried) -> list[int]:
    numbers: list[int] = column(file.tables[carried.name], "id")
    if carried.name == "identity":  # an undo may bring one back that is not there now
        numbers += [n for n in column(file.tables["decided_move"], "former_identity_id") if n is not None]
    return numbers


def _enter_versions(session: Session, file: ArchiveReader, numbers: Renumbering) -> dict[int, int]:
    """Enter the model versions that are not known yet; returns the dimensions of those that embed, by their numbers here."""
    here = {version.contract: version for version in session.scalars(select(ModelVersion))}
    table = BY_NAME["model_version"].table
    rows = [row for page in rows_of(file, BY_NAME["model_version"]) for row in page]
    numbers.reserve(table, [row["id"] for row in rows if row["contract"] not in here])
    new = numbers.numbers[table.name]
    known = {row["id"]: here[row["contract"]].id for row in rows if row["contract"] in here}
    for row in rows:
        if row["id"] in new:
            session.execute(insert(table).values({**row, "id": new[row["id"]], "serving": False}))
        elif here[row["contract"]].calibration is None:
            here[row["contract"]].calibration = row["calibration"]
    numbers.are(table.name, new | known)
    session.flush()
    embedding = [row for row in rows if row["role"] == Role.EMBED.value and row["dimension"]]
    return {numbers.numbers[table.name][row["id"]]: row["dimension"] for row in embedding}


def _enter(
    session: Session,
    file: ArchiveReader,
    carried: Carried,
    numbers: Renumbering,
    where: Places,
    held: HeldBack,
    dimensions: dict[int, int],
) -> int:
    """Enter the rows of one table; returns how many."""
    count, key_column = 0, OBJECT_KEYS.get(carried.name)
    for page in rows_of(file, carried):
        rows = page
        if carried.name in OF_A_FACE:
            rows = [row for row in rows if row["face_id"] not in held.faces]
        if key_column is not None:
            rows = [row | {key_column: _key(file, row, key_column, where, held)} for row in rows]
        if carried.name == "run":
            rows = [row | {"reported_at": row["reported_at"] or now()} for row in rows]  # nobody is told of it here
        rows = numbers.translated(carried, rows)
        for row in rows if carried.name == "embedding" else ():
            if row["vector"].shape != (dimensions.get(row["model_version_id"]),):
                raise InvalidArchive(
                    f"{file.path}: a vector of {len(row['vector'])} numbers is none of its model version"
                )
        if rows:
            session.execute(insert(carried.table), rows)
        count += len(rows)
    return count


def _key(file: ArchiveReader, row: dict[str, Any], key_column: str, where: Places, held: HeldBack) -> str | None:
    old = row[key_column]
    if old is None or (key_column == "crop_key" and row.get("id") in held.faces and "ordinal" in row):
        return None if old is None else ""  # of an erased face, which goes before anybody sees it
    if old not in where.keys:
        raise InvalidArchive(f"{file.path}: the crop {old!r} is missing; archive the collection anew")
    return where.keys[old]


def _keep_out(
    session: Session, file: ArchiveReader, collection_id: int, who: str, numbers: Renumbering, held: HeldBack
) -> None:
    """Take out what was erased here, and remember that neither it nor what was erased there may come in later."""
    keys, erased = erased_there(file)
    if not (erased or held.marks or held.images):
        return
    certificate = Erasure(
        kind="import",
        reason="erased before the collection was taken in from an archive",
        who=who,
        counts={"photos": len(held.images), "faces": len(held.faces), "inherited": len(erased)},
    )
    session.add(certificate)
    session.flush()
    erasing.inherit(session, certificate.id, collection_id, keys, erased)
    for sha256, box in held.marks:
        erasing.suppress_content(session, certificate.id, collection_id, sha256, box)
    images = list(
        session.scalars(select(Image).where(Image.id.in_([numbers.numbers["image"][i] for i in held.images])))
    )
    for image in images:
        erasing.suppress_object(session, certificate.id, image)
    erasing.forget_faces(session, [numbers.numbers["face"][face] for face in held.faces])
    erasing.forget_images(session, images)
    contents = [numbers.numbers["content"][content] for content in held.contents]
    session.execute(delete(Content).where(Content.id.in_(contents)).execution_options(synchronize_session=False))
    if held.faces or held.images:
        erasing.post_scrub(session, certificate.id)
    else:
        certificate.completed_at = now()


def _serve(session: Session, file: ArchiveReader, dimensions: dict[int, int]) -> None:
    """Index what is new, and let queries use what they used there, if they use nothing here."""
    for version, dimension in dimensions.items():
        create_index(session.connection(), version, dimension)
    if serving_id(session) is None:
        served = select(ModelVersion.id).where(ModelVersion.contract == file.manifest.get("serving"))
        found = session.scalar(served)
        if found in dimensions:
            serve_when_complete(session, found)


def _lacking(session: Session, collection_id: int) -> int:
    served = serving_id(session)
    if served is None:
        return 0
    faces = select(func.count(Face.id)).join(Content, Content.id == Face.content_id)
    return session.scalar(faces.where(Content.collection_id == collection_id, lacks(served), visible())) or 0
