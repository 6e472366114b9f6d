"""A crowd for search: synthetic people with several faces each, entered into a catalog in bulk.

Vectors lie as real ones do. At 128-D every figure was fitted to the embeddings of LFW's shared crops by dlib's network
(`python -m tests.benchmarks.likeness` shows both side by side): all lie in one cone, people differ in few directions much and
in many little, and some pictures of a person are worse than others. What an index has to cope with is how many faces are about
as near as the nearest; isotropic vectors make that far harder than faces do. For other dimensions there were no real faces:
the spread over directions is widened with the root of the dimension, which is more than was found for networks of 512
(Gong et al., "On the Intrinsic Dimensionality of Image Representations", CVPR 2019), so searching is rather harder than real.
No synthetic crowd tells how well a model recognises, only how well an index finds.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.search.vectors import create_index
from infra.catalog.tables.schema import Attribute, Collection, Content, Embedding, Face, Image, ModelVersion

CONE = 0.92  # length of what all faces have in common
AMONG, WITHIN = 0.111, 0.046  # variance among people, and of one person's faces
DECAY = (
    12.0  # at 128-D: variance among people falls e-fold every so many directions, within a person every twice as many
)
UNEVEN = 0.2  # standard deviation of the logarithm of how far a picture strays from its person
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
BULK = 5_000
EMBEDDER = 2
SMALL_EVERY = 100  # of the photos, one lies in the collection `small`, the others in `large`


def vectors(count: int, dimension: int, per_person: int = 10, seed: int = 0) -> np.ndarray:
    """Make the faces of count / per_person people, in no order: (count, dimension) float32, unit length."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((max(1, count // per_person), dimension), np.float32)
    faces = people[rng.integers(0, len(people), count)] * _spread(AMONG, DECAY, dimension)
    within = _spread(WITHIN, 2 * DECAY, dimension)
    common = rng.standard_normal(dimension, np.float32)
    common *= CONE / np.linalg.norm(common)
    for start in range(0, count, 100_000):
        part = faces[start : start + 100_000]
        stray = np.exp(UNEVEN * rng.standard_normal((len(part), 1), np.float32) - UNEVEN**2)  # its mean square is 1
        part += common + within * stray * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return faces


def people_of(count: int, dimension: int, per_person: int = 10, seed: int = 0) -> np.ndarray:
    """Who each face is that `vectors` makes with the same arguments: (count,) int64."""
    rng = np.random.default_rng(seed)
    people = max(1, count // per_person)
    rng.standard_normal((people, dimension), np.float32)
    return rng.integers(0, people, count)


def _spread(variance: float, decay: float, dimension: int) -> np.ndarray:
    """Standard deviations (D,) that fall exponentially from direction to direction."""
    variances = np.exp(-np.arange(dimension) / (decay * (dimension / 128) ** 0.5))
    return np.sqrt(variance * variances / variances.sum()).astype(np.float32)


def enter(catalog: Catalog, faces: np.ndarray, *, indexed: bool = True) -> None:
    """Enter one photo per vector, the ids 1, 2, ...: quality rises from 0 to 1 over every 1,000 faces, and days over the years.

    Every third face smiles. `indexed`: with PostgreSQL's index, made at the end.
    """
    with catalog.write() as session:
        for number, name in ((1, "large"), (2, "small")):
            session.add(
                Collection(id=number, name=name, uri="/photos", include=[], exclude=[], sensitive_attributes=[])
            )
        for number, role in enumerate(("detect", "embed", "describe"), start=1):
            row = ModelVersion(
                id=number, name=role, version=1, role=role, contract=role, contract_content={}, weights_sha256="0",
                dimension=faces.shape[1], licence="CC0", serving=role == "embed",
            )  # fmt: skip
            session.add(row)
    for start in range(0, len(faces), BULK):
        with catalog.write() as session:
            for entity, rows in _rows(range(start + 1, min(start + BULK, len(faces)) + 1), faces):
                session.execute(insert(entity), rows)
    if indexed:
        with catalog.engine.begin() as connection:
            create_index(connection, EMBEDDER, faces.shape[1])


def fill(session: Session, faces: np.ndarray, people: np.ndarray) -> None:
    """Enter a photo per face, the ids 1, 2, ..., past the ORM: many, and into SQLite only. `enter` comes before, without faces.

    The first of them have places among people, (N,) int64, and stand for them. One in a hundred lies in the collection `small`.
    Every third face smiles, all have an age from 0 to 79, and the last is the only one that looks surprised.
    """
    numbers = f"WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {len(faces)}) "
    session.execute(
        text(
            "INSERT INTO content (id, collection_id, sha256, status, recipe, owner_image_id, run_id, notes, failure_retryable) "
            f"{numbers} SELECT i, CASE WHEN i % {SMALL_EVERY} THEN 1 ELSE 2 END, i, 'done', '', i, 1, '[]', 0 FROM s"
        )
    )
    session.execute(
        text(
            "INSERT INTO image (id, collection_id, key, etag, size, modified_at, status, retryable, recipe, content_id) "
            "SELECT id, collection_id, id || '.jpg', '', 1, '2026-01-01 00:00:00', 'done', 0, '', id FROM content"
        )
    )
    session.execute(
        text(
            "INSERT INTO face (id, content_id, detector_id, ordinal, x1, y1, x2, y2, landmarks, score, quality, "
            f"quality_parts, crop_key, found_at) {numbers} SELECT i, i, 1, 0, 0, 0, 1, 1, x'', 1, (i % 1000) / 1000.0, "
            "'{}', i, '2026-01-01 00:00:00' FROM s"
        )
    )
    for name, kind, value, label, which in (
        ("expression", "category", "3", "'happiness'", "id % 3 = 0"),
        ("expression", "category", "6", "'surprise'", f"id = {len(faces)} AND id % 3"),
        ("age", "years", "id % 80", "NULL", "1"),
    ):
        session.execute(
            text(
                "INSERT INTO attribute (face_id, model_version_id, name, kind, unit, value, label, confidence) "
                f"SELECT id, 3, '{name}', '{kind}', '', {value}, {label}, 0.9 FROM face WHERE {which}"
            )
        )
    connection = session.connection()
    for first in range(0, len(faces), 10_000):
        rows = [(first + i + 1, EMBEDDER, v.tobytes()) for i, v in enumerate(faces[first : first + 10_000])]
        connection.exec_driver_sql("INSERT INTO embedding (face_id, model_version_id, vector) VALUES (?, ?, ?)", rows)
    named = [(int(i), EMBEDDER) for i in np.unique(people)]
    connection.exec_driver_sql(
        "INSERT INTO identity (id, model_version_id, created_at) VALUES (?, ?, '2026-01-01 00:00:00')", named
    )
    connection.exec_driver_sql(
        "INSERT INTO face_identity (face_id, model_version_id, identity_id, exemplar, run_id) VALUES (?, ?, ?, 1, 1)",
        [(i + 1, EMBEDDER, identity) for i, identity in enumerate(people.tolist())],
    )


def collection_of(face_id: int) -> str:
    return "small" if face_id % SMALL_EVERY == 0 else "large"


def quality_of(face_id: int) -> float:
    return (face_id % 1000) / 1000


def day_of(face_id: int) -> str:
    return f"{2000 + face_id % 25}-{1 + face_id % 12:02}-{1 + face_id % 28:02}T12:00:00"


def smiles(face_id: int) -> bool:
    return face_id % 3 == 0


def _rows(ids: range, faces: np.ndarray) -> Iterator[tuple[type, list[dict[str, object]]]]:
    done = {"status": "done", "recipe": ""}
    small = {i: 2 if collection_of(i) == "small" else 1 for i in ids}
    yield (
        Content,
        [
            {
                "id": i,
                "collection_id": small[i],
                "sha256": str(i),
                "owner_image_id": i,
                "run_id": 1,
                "taken_at": day_of(i),
            }
            | {"notes": [], "failure_retryable": False}
            | done
            for i in ids
        ],
    )
    listed = {"etag": "", "size": 1, "modified_at": WHEN, "retryable": False}
    yield (
        Image,
        [{"id": i, "collection_id": small[i], "key": f"{i}.jpg", "content_id": i} | listed | done for i in ids],
    )
    box = {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0, "landmarks": np.zeros(10), "score": 1.0}
    named = {"detector_id": 1, "ordinal": 0, "quality_parts": {}}
    yield (
        Face,
        [{"id": i, "content_id": i, "quality": quality_of(i), "crop_key": f"{i}.jpg"} | box | named for i in ids],
    )
    yield Embedding, [{"face_id": i, "model_version_id": EMBEDDER, "vector": faces[i - 1]} for i in ids]
    smile = {"model_version_id": 3, "name": "expression", "kind": "category", "unit": "", "value": 3.0}
    smile |= {"label": "happiness", "confidence": 0.9}
    yield Attribute, [{"face_id": i} | smile for i in ids if smiles(i)]
