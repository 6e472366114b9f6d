"""Is a catalog whole? What its database, its references, its vectors and its indexes say."""

from dataclasses import dataclass

import numpy as np
from sqlalchemy import LargeBinary, func, or_, select, text, type_coerce
from sqlalchemy.orm import Session, aliased

from infra.catalog import encryption
from infra.catalog.database import Catalog, revision
from infra.catalog.exchange.copying import tables
from infra.catalog.search.vectors import CHUNK, count_vectors, has_index
from infra.catalog.tables.people import Person
from infra.catalog.tables.schema import UNIT_TOLERANCE, Embedding, ModelVersion
from infra.words import count

SHOWN = 5  # faces that a problem names


@dataclass(frozen=True)
class Check:
    """What is in a catalog, and what is wrong with it; `problems` is empty when all is well."""

    location: str
    revision: str
    rows: dict[str, int]
    problems: tuple[str, ...]


def check(catalog: Catalog) -> Check:
    """Read a whole catalog once and say what is wrong with it."""
    with catalog.read() as session:
        rows = {t.name: session.scalar(select(func.count()).select_from(t)) or 0 for t in tables()}
        at = revision(session.connection())
        problems = _database(session) + _persons(session) + _embeddings(session) + _sealing(session)
    return Check(catalog.engine.url.render_as_string(), str(at), rows, tuple(problems))


def _database(session: Session) -> list[str]:
    if session.get_bind().dialect.name != "sqlite":
        return []  # PostgreSQL lets no reference dangle
    damage = [row for (row,) in session.execute(text("PRAGMA integrity_check")).tuples() if row != "ok"]
    dangling: dict[str, int] = {}
    for row in session.execute(text("PRAGMA foreign_key_check")):
        dangling[row[0]] = dangling.get(row[0], 0) + 1
    problems = [f"the file is damaged: {line}; restore a backup" for line in damage[:SHOWN]]
    return problems + [
        f"{count(rows, 'row')} of {table} cannot be right: what is referred to is not there"
        for table, rows in dangling.items()
    ]


def _persons(session: Session) -> list[str]:
    root = aliased(Person)
    astray = or_(root.id.is_(None), root.root_id != root.id, root.merged_into_id.is_not(None))
    found = session.scalar(select(func.count(Person.id)).outerjoin(root, root.id == Person.root_id).where(astray))
    advice = "undo their latest merge ('visage people history' lists it)"
    return [f"{count(found, 'person was', 'persons were')} merged in a circle; {advice}"] if found else []


def _embeddings(session: Session) -> list[str]:
    problems = []
    postgresql = session.get_bind().dialect.name == "postgresql"
    versions = session.execute(select(ModelVersion.id, ModelVersion.name, ModelVersion.version, ModelVersion.dimension))
    for version_id, name, version, dimension in versions.tuples().all():
        if not count_vectors(session, version_id, at_most=1):
            continue
        wrong = _wrong_vectors(session, version_id, dimension or 0)
        if wrong:
            of = f"{name}@{version}"
            some = ", ".join(map(str, wrong[:SHOWN])) + (", ..." if len(wrong) > SHOWN else "")
            told = count(len(wrong), f"embedding by {of} is no vector", f"embeddings by {of} are no vectors")
            problems.append(f"{told} of unit length: faces {some}")
        if postgresql and not has_index(session.connection(), version_id):
            problems.append(f"{name}@{version} has no index, so that search is slow; 'visage db upgrade' makes it")
    return problems


def _sealing(session: Session) -> list[str]:
    """Vectors that are open in an encrypted catalog, or sealed in another: written in the course of a switch."""
    encrypted = encryption.is_encrypted(session)
    unlike = encryption.sealed_in_rows() != encrypted
    found = session.scalar(select(func.count()).select_from(Embedding).where(unlike)) or 0
    if not found:
        return []
    some = session.scalars(select(Embedding.face_id).where(unlike).order_by(Embedding.face_id).limit(SHOWN))
    faces = ", ".join(map(str, some)) + (", ..." if found > SHOWN else "")
    told = count(found, "embedding is", "embeddings are")
    if encrypted:
        return [
            f"{told} readable although the catalog is encrypted: faces {faces}; 'visage encryption off' and "
            "then 'on' encrypts all of them"
        ]
    return [
        f"{told} encrypted although the catalog is not: faces {faces}; 'visage encryption on' with their key "
        "and then 'off' decrypts all of them"
    ]


def _wrong_vectors(session: Session, version_id: int, dimension: int) -> list[int]:
    """Faces whose stored bytes are not what they should be."""
    wrong: list[int] = []
    after = 0
    stored = type_coerce(Embedding.vector, LargeBinary)
    statement = select(Embedding.face_id, stored).where(Embedding.model_version_id == version_id)
    while True:
        page = statement.where(Embedding.face_id > after).order_by(Embedding.face_id).limit(CHUNK)
        rows = [(face, encryption.opened(session, data)) for face, data in session.execute(page).tuples()]
        right = [(face, data) for face, data in rows if len(data) == 4 * dimension]
        wrong += [face for face, data in rows if len(data) != 4 * dimension]
        lengths = np.linalg.norm(
            np.array([np.frombuffer(data, "<f4") for _, data in right]).reshape(-1, dimension), axis=1
        )
        off = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)  # NaN too
        wrong += [face for (face, _), bad in zip(right, off, strict=True) if bad]
        if len(rows) < CHUNK:
            return sorted(wrong)
        after = rows[-1][0]
