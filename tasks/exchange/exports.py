"""Exports: faces with all that is known of them, as files for other programs.

An export is a folder that this module makes, so that all in it is ours: the catalog remembers and marks it, and an erasure that
concerns what it may hold removes it.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.asked import AskedWrongly
from infra.catalog.custody import audit, exhibits
from infra.catalog.database import Catalog
from infra.catalog.queries.questions import ask
from infra.catalog.queries.views import FaceView
from infra.catalog.tables.people import Person
from infra.catalog.tables.schema import Content, Embedding, Face, Identity, Image, ImageStatus, ModelVersion
from infra.settings import Settings
from infra.storage import open_store

SCHEMA_VERSION = "1"  # of the files' columns: a change that a reader must know of raises it
PAGE = 1000
LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner")  # as the image shows them

FACES = pa.schema(
    [("face_id", pa.int64()), ("collection", pa.string()), ("keys", pa.list_(pa.string()))]
    + [(name, pa.float32()) for name in ("x1", "y1", "x2", "y2", "score", "quality")]
    + [("person_id", pa.int64()), ("person", pa.string())],
    {"visage_schema": SCHEMA_VERSION},
)
ATTRIBUTES = pa.schema(
    [("face_id", pa.int64())]
    + [(name, pa.string()) for name in ("name", "kind", "unit")]
    + [("value", pa.float64()), ("label", pa.string()), ("confidence", pa.float32()), ("model", pa.string())],
    {"visage_schema": SCHEMA_VERSION},
)
EMBEDDINGS = pa.schema(
    [("face_id", pa.int64()), ("model", pa.string()), ("contract", pa.string()), ("vector", pa.list_(pa.float32()))],
    {"visage_schema": SCHEMA_VERSION},
)


class CannotExport(ValueError):
    """The export cannot be made; the message says why."""


class InvalidExport(CannotExport, AskedWrongly):
    """What is asked for does not go together."""


class Format(StrEnum):
    """What an export looks like."""

    PARQUET = "parquet"
    CSV = "csv"
    JSON_LINES = "jsonl"
    COCO = "coco"
    FOLDER = "folder"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    faces: int
    files: tuple[str, ...]


def export(
    catalog: Catalog,
    settings: Settings,
    question: str,
    folder: Path,
    format: Format,
    who: str,
    embeddings: bool = False,
    min_pictures: int = 1,
) -> Exported:
    """Write the faces that a question means into a new folder. `embeddings`: their vectors too (Parquet only).

    `min_pictures`: of a person, under which they are left out (folder only).

    parquet, csv: faces and attributes as tables. jsonl: a face a line. coco: photos with boxes and five landmarks each.
    folder: the crops of known people, a folder for each, as `visage train recognition` reads them; nobody is among them whom
    people decided to ignore.

    Raises:
        CannotExport: if the folder is there already, or the format has no place for vectors or for people.
        InvalidQuestion: if the question cannot be read.
    """
    if embeddings and format is not Format.PARQUET:
        raise InvalidExport(f"vectors are exported as parquet, not as {format.value}")
    if min_pictures > 1 and format is not Format.FOLDER:
        raise InvalidExport(f"pictures are counted by person in the format folder, not in {format.value}")
    with catalog.read() as session:
        ask(session, question, 1)  # whatever is wrong with the question is said before anything is written
    with catalog.write() as session:
        try:
            noted = exhibits.make_folder(session, settings, "export", folder, None)
        except FileExistsError:
            raise CannotExport(f"{folder} is there already; name a new folder, which an erasure may remove") from None
        audit.append(session, who, "export", {"format": format.value, "embeddings": embeddings})
    with exhibits.whole(catalog, noted), catalog.read() as session:
        count = _WRITERS[format](_Source(session, settings, question, embeddings, min_pictures), folder)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != exhibits.MARK]
    return Exported(folder, count, tuple(sorted(str(path.relative_to(folder)) for path in paths)))


@dataclass(frozen=True)
class _Source:
    session: Session
    settings: Settings
    question: str
    embeddings: bool
    min_pictures: int

    def pages(self) -> Iterator[list[FaceView]]:
        """The faces, in pages; what is recorded meanwhile is not among them."""
        after = 0
        while page := ask(self.session, self.question, PAGE, after):
            yield page
            after = page[-1].face_id


def _parquet(source: _Source, folder: Path) -> int:
    count = 0
    with (
        pyarrow.parquet.ParquetWriter(folder / "faces.parquet", FACES) as faces,
        pyarrow.parquet.ParquetWriter(folder / "attributes.parquet", ATTRIBUTES) as attributes,
    ):
        for page in source.pages():
            faces.write_table(_faces(page))
            attributes.write_table(_attributes(page))
            count += len(page)
    if source.embeddings:
        with pyarrow.parquet.ParquetWriter(folder / "embeddings.parquet", EMBEDDINGS) as embeddings:
            for page in source.pages():
                embeddings.write_table(_embeddings(source.session, page))
    return count


def _csv(source: _Source, folder: Path) -> int:
    count = 0
    flat = FACES.set(2, pa.field("keys", pa.string()))
    with (
        pyarrow.csv.CSVWriter(folder / "faces.csv", flat) as faces,
        pyarrow.csv.CSVWriter(folder / "attributes.csv", ATTRIBUTES) as attributes,
    ):
        for page in source.pages():
            keys = pa.array(["\n".join(face.keys) for face in page])
            faces.write_table(_faces(page).set_column(2, "keys", keys).cast(flat))
            attributes.write_table(_attributes(page))
            count += len(page)
    return count


def _json_lines(source: _Source, folder: Path) -> int:
    count = 0
    with (folder / "faces.jsonl").open("w", encoding="utf-8") as file:
        for page in source.pages():
            for face in page:
                facts = {name: value for name, value in asdict(face).items() if name != "crop_key"}
                file.write(json.dumps(facts, ensure_ascii=False) + "\n")
            count += len(page)
    return count


def _coco(source: _Source, folder: Path) -> int:
    """COCO's keypoint format, streamed: images, annotations and the one category."""
    count, seen = 0, set[int]()
    category = {"id": 1, "name": "face", "supercategory": "person", "keypoints": LANDMARKS, "skeleton": []}
    annotations = folder / "annotations.part"
    with (
        (folder / "annotations.json").open("w", encoding="utf-8") as file,
        annotations.open("w+", encoding="utf-8") as later,
    ):
        about = {"info": {"description": "Visage", "version": SCHEMA_VERSION}, "licenses": [], "categories": [category]}
        file.write(json.dumps(about)[:-1] + ', "images": [')
        for page in source.pages():
            for image, face in _placed(source.session, page):
                if image["id"] not in seen:
                    _item(file, image, first=not seen)
                    seen.add(image["id"])
                _item(later, face, first=not count)
                count += 1
        file.write('], "annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, file)
        file.write("]}")
    annotations.unlink()
    return count


def _item(file: TextIO, item: dict[str, Any], first: bool) -> None:
    file.write(("" if first else ", ") + json.dumps(item, ensure_ascii=False))


def _placed(session: Session, page: Sequence[FaceView]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every face in every photo that shows it, as COCO's image and annotation."""
    rows = session.execute(
        select(Face.id, Face.landmarks, Image.id, Image.key, Content.width, Content.height)
        .join(Content, Content.id == Face.content_id)
        .join(Image, Image.content_id == Content.id)
        .where(Face.id.in_([face.face_id for face in page]), Image.status != ImageStatus.MISSING.value)
        .order_by(Face.id, Image.id)
    ).tuples()
    views = {face.face_id: face for face in page}
    for face_id, landmarks, image_id, key, width, height in rows:
        x1, y1, x2, y2 = views[face_id].box
        points = [value for x, y in landmarks.reshape(-1, 2).tolist() for value in (round(x, 2), round(y, 2), 2)]
        box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
        annotation = {
            "id": face_id * 2**20 + image_id % 2**20,  # one face in two copies of a photo is two annotations
            "image_id": image_id,
            "category_id": 1,
            "bbox": box,
            "area": round(box[2] * box[3], 2),
            "iscrowd": 0,
            "keypoints": points,
            "num_keypoints": len(LANDMARKS),
            "score": views[face_id].score,
        }
        yield {"id": image_id, "file_name": key, "width": width, "height": height}, annotation


def _folder(source: _Source, folder: Path) -> int:
    crops, count = open_store(source.settings.crops_uri, source.settings.storage_options), 0
    pictures: Counter[int] = Counter()
    for page in source.pages():
        pictures.update(face.identity_id for face in page if face.identity_id is not None)
    ignored = select(Identity.id).join(Person, Person.id == Identity.person_id).where(Person.ignored)
    wanted = {person for person, found in pictures.items() if found >= source.min_pictures}
    wanted -= set(source.session.scalars(ignored))
    for page in source.pages():
        for face in page:
            if face.identity_id not in wanted:
                continue
            person = folder / _person(face)
            person.mkdir(exist_ok=True)
            (person / f"{face.face_id}.jpg").write_bytes(crops.read(face.crop_key, source.settings.max_bytes).data)
            count += 1
    return count


def _person(face: FaceView) -> str:
    """A name for a person's folder that any file system takes."""
    name = re.sub(r"[^\w.-]+", "_", face.identity_name or "").strip("._")[:60]
    return f"{face.identity_id}-{name}" if name else str(face.identity_id)


def _faces(page: Sequence[FaceView]) -> pa.Table:
    boxes = list(zip(*(face.box for face in page), strict=True))
    columns = [[f.face_id for f in page], [f.collection for f in page], [list(f.keys) for f in page], *boxes]
    columns += [[f.score for f in page], [f.quality for f in page]]
    columns += [[f.identity_id for f in page], [f.identity_name for f in page]]
    return pa.table(columns, schema=FACES)


def _attributes(page: Sequence[FaceView]) -> pa.Table:
    named = [(face.face_id, attribute) for face in page for attribute in face.attributes]
    columns = [[face_id for face_id, _ in named]]
    columns += [[getattr(attribute, name) for _, attribute in named] for name in ATTRIBUTES.names[1:]]
    return pa.table(columns, schema=ATTRIBUTES)


def _embeddings(session: Session, page: Sequence[FaceView]) -> pa.Table:
    rows = session.execute(
        select(Embedding.face_id, ModelVersion.name, ModelVersion.version, ModelVersion.contract, Embedding.vector)
        .join(ModelVersion, ModelVersion.id == Embedding.model_version_id)
        .where(Embedding.face_id.in_([face.face_id for face in page]))
        .order_by(Embedding.face_id, ModelVersion.id)
    ).all()
    columns = [[r[0] for r in rows], [f"{r[1]}@{r[2]}" for r in rows], [r[3] for r in rows], [r[4] for r in rows]]
    return pa.table(columns, schema=EMBEDDINGS)


_WRITERS = {
    Format.PARQUET: _parquet,
    Format.CSV: _csv,
    Format.JSON_LINES: _json_lines,
    Format.COCO: _coco,
    Format.FOLDER: _folder,
}
