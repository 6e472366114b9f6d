"""Exports hold what the catalog holds, in formats that other programs read, and go when a person is erased."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from sqlalchemy import select

from infra.catalog.database import Catalog
from infra.catalog.queries.questions import ask
from infra.catalog.queries.views import FaceView
from infra.catalog.tables.custody import Exhibit
from infra.settings import Settings
from infra.storage import StoreError
from tasks.exchange.exports import CannotExport, Format, export
from tasks.identities.decisions import ignore_identity
from tasks.training.collection import find_faces
from tasks.training.options import TrainingOptions
from tasks.training.train import plan
from tests.command import visage


@pytest.fixture
def faces(archive: Settings) -> list[FaceView]:
    with Catalog(archive.catalog_url).read() as session:
        return ask(session, "", 100)


def made(archive: Settings, folder: Path, format: Format, question: str = "", embeddings: bool = False) -> Path:
    exported = export(Catalog(archive.catalog_url), archive, question, folder, format, "tests", embeddings)
    assert exported.folder == folder
    assert all((folder / name).exists() for name in exported.files)
    return folder


def test_parquet_holds_faces_attributes_and_vectors(archive: Settings, faces: list[FaceView], tmp_path: Path) -> None:
    folder = made(archive, tmp_path / "out", Format.PARQUET, embeddings=True)
    table = pyarrow.parquet.read_table(folder / "faces.parquet")
    assert table.schema.metadata[b"visage_schema"] == b"1"
    assert table["face_id"].to_pylist() == [face.face_id for face in faces]
    assert table["keys"].to_pylist() == [list(face.keys) for face in faces]
    assert table["person_id"].to_pylist() == [face.identity_id for face in faces]
    attributes = pyarrow.parquet.read_table(folder / "attributes.parquet")
    assert len(attributes) == sum(len(face.attributes) for face in faces)
    vectors = pyarrow.parquet.read_table(folder / "embeddings.parquet")["vector"].to_pylist()
    assert np.linalg.norm(np.array(vectors), axis=1) == pytest.approx(np.ones(len(faces)), abs=1e-5)


def test_only_faces_that_are_meant_are_exported(archive: Settings, tmp_path: Path) -> None:
    folder = made(archive, tmp_path / "out", Format.CSV, "photo = c/pair.jpg")
    table = pyarrow.csv.read_csv(folder / "faces.csv", parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))
    assert table["keys"].to_pylist() == ["c/pair.jpg"] * 2
    assert set(pyarrow.csv.read_csv(folder / "attributes.csv")["face_id"].to_pylist()) == set(
        table["face_id"].to_pylist()
    )


def test_json_lines_hold_a_face_each(archive: Settings, faces: list[FaceView], tmp_path: Path) -> None:
    folder = made(archive, tmp_path / "out", Format.JSON_LINES)
    lines = [json.loads(line) for line in (folder / "faces.jsonl").read_text().splitlines()]
    assert [line["face_id"] for line in lines] == [face.face_id for face in faces]
    assert {a["name"] for line in lines for a in line["attributes"]} == {a.name for f in faces for a in f.attributes}


def test_coco_has_every_face_in_every_photo_with_its_landmarks(archive: Settings, tmp_path: Path) -> None:
    content = json.loads((made(archive, tmp_path / "out", Format.COCO) / "annotations.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    assert sorted(image["file_name"] for image in images.values()) == [
        "a.jpg",
        "b.jpg",
        "c/pair.jpg",
        "z_copy_of_a.jpg",
    ]
    assert len(content["annotations"]) == len({a["id"] for a in content["annotations"]}) == 5
    for annotation in content["annotations"]:
        x, _, width, height = annotation["bbox"]
        points = np.array(annotation["keypoints"]).reshape(5, 3)
        assert (points[:, 0] > x).all()
        assert (points[:, 0] < x + width).all()
        assert 0 < height <= images[annotation["image_id"]]["height"]


def test_folder_holds_crops_by_person(archive: Settings, faces: list[FaceView], tmp_path: Path) -> None:
    folder = made(archive, tmp_path / "out", Format.FOLDER)
    found = {int(path.stem): path.parent.name for path in folder.rglob("*.jpg")}
    assert found == {face.face_id: str(face.identity_id) for face in faces if face.identity_id is not None}
    assert found


def test_training_reads_the_folder_and_finds_every_face_in_it(
    archive: Settings, faces: list[FaceView], tmp_path: Path
) -> None:
    folder = made(archive, tmp_path / "out", Format.FOLDER, "quality > 0.2")
    planned = plan(archive, folder, None, TrainingOptions())
    known = {face.face_id: str(face.identity_id) for face in faces if face.identity_id and face.quality > 0.2}
    labels = dict(zip(planned.labelled.names, planned.labelled.identities, strict=True))
    assert labels == {f"{person}/{face}.jpg": person for face, person in known.items()}
    assert planned.spec.preprocess is not None
    found = find_faces(
        archive, planned.detector, planned.spec.preprocess.template, planned.labelled, tmp_path / "faces"
    )
    assert (sorted(found.names), found.without_face) == (sorted(labels), ())


def test_people_with_few_pictures_and_ignored_ones_are_left_out(
    archive: Settings, faces: list[FaceView], tmp_path: Path
) -> None:
    counts = Counter(face.identity_id for face in faces if face.identity_id is not None)
    most = max(counts.values())

    def people(name: str, min_pictures: int, settings: Settings = archive) -> set[str]:
        catalog = Catalog(settings.catalog_url)
        export(catalog, settings, "", tmp_path / name, Format.FOLDER, "tests", min_pictures=min_pictures)
        return {path.name for path in (tmp_path / name).iterdir() if path.is_dir()}

    assert people("all", 1) == {str(person) for person in counts}
    assert people("some", most) == {str(person) for person, count in counts.items() if count == most}
    assert people("none", most + 1) == set()
    own = archive.model_copy(update={"home": shutil.copytree(archive.home_folder, tmp_path / "home")})
    with Catalog(own.catalog_url).write() as session:
        ignore_identity(session, "tests", min(counts))
    assert people("without", 1, own) == {str(person) for person in counts if person != min(counts)}
    with pytest.raises(CannotExport, match="pictures are counted by person in the format folder, not in csv"):
        export(Catalog(own.catalog_url), own, "", tmp_path / "x", Format.CSV, "tests", min_pictures=2)


def test_what_is_there_is_not_written_over(archive: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CannotExport, match="is there already; name a new folder"):
        made(archive, tmp_path, Format.CSV)
    with pytest.raises(CannotExport, match="vectors are exported as parquet, not as csv"):
        made(archive, tmp_path / "out", Format.CSV, embeddings=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing_that_an_erasure_would_delete(archive: Settings, tmp_path: Path) -> None:
    own = archive.model_copy(update={"home": shutil.copytree(archive.home_folder, tmp_path / "home")})
    catalog = Catalog(own.catalog_url)
    shutil.rmtree(own.crops_uri)
    with pytest.raises(StoreError):
        export(catalog, own, "", tmp_path / "people", Format.FOLDER, "tests")
    assert not (tmp_path / "people").exists()
    export(catalog, own, "", tmp_path / "table", Format.CSV, "tests")
    with catalog.read() as session:
        noted = session.scalars(select(Exhibit.place).where(Exhibit.place.startswith(str(tmp_path)))).all()
    assert noted == [str(tmp_path / "table")]


def test_command_says_what_it_wrote(archive: Settings, tmp_path: Path) -> None:
    ended = visage("export", tmp_path / "out", "quality > 0.1", "--format", "jsonl", "--json")
    assert (ended.code, ended.json["files"]) == (0, ["faces.jsonl"])
    ended = visage("export", tmp_path / "bad", "quality >> 1")
    assert ended.code == 2
    assert "cannot be read" in ended.err
    assert not (tmp_path / "bad").exists()
