"""Grouping is judged on labelled pictures as nights group: by anybody, the same way."""

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest

from infra.settings import Settings
from tasks.evaluation.grouping import evaluate_grouping, read_labels
from tasks.evaluation.labels import UnusableLabels
from tests.command import visage
from tests.made_up import calibration
from tests.pairs import pictures
from tests.portraits import jpeg, landscape


def people(count: int, each: int, spread: float) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    random = np.random.default_rng(0)
    centres = np.repeat(random.normal(size=(count, 64)), each, axis=0)
    seen = centres + random.normal(size=centres.shape) * spread
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    names = [f"person_{n // each}/{n}.jpg" for n in range(count * each)]
    return dict(zip(names, seen.astype(np.float32), strict=True)), {name: name.split("/")[0] for name in names}


def test_clear_people_are_grouped_without_a_mistake_and_twins_in_one_photo_stay_apart() -> None:
    vectors, labels = people(20, 5, spread=0.4)
    report = evaluate_grouping(vectors, {**labels, "nobody.jpg": "x"}, calibration("c"))
    assert (report.faces, report.people, report.without_face) == (100, 20, 1)
    assert [(r.nights, r.order) for r in report.rounds] == [(1, 0), (5, 0), (5, 1), (5, 2), (20, 0), (20, 1), (20, 2)]
    assert {r.f for r in report.rounds} == {1.0}
    assert report.twins > 0
    assert report.twins_merged == 0


def test_people_who_look_unlike_themselves_cost_recall() -> None:
    vectors, labels = people(20, 5, spread=1.2)
    report = evaluate_grouping(vectors, labels, calibration("c"))
    assert max(r.recall for r in report.rounds) < 0.9


def test_who_is_in_a_picture_is_told_by_folder_name_or_table(tmp_path: Path) -> None:
    for name in ("Ada/1.jpg", "Ada/2.png", "Bob/1.jpg", "Ann_Lee_0001.jpg", "notes.txt"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).touch()
    by_folder = {"Ada/1.jpg": "Ada", "Ada/2.png": "Ada", "Bob/1.jpg": "Bob", "Ann_Lee_0001.jpg": "Ann_Lee"}
    assert read_labels(tmp_path / "pictures", None) == by_folder
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(tmp_path / "pictures", ".")
    assert read_labels(tmp_path / "pictures.tar", None) == by_folder
    table = tmp_path / "labels.csv"
    table.write_text("\ufeffimage,person\nAda/1.jpg,A\nAda/2.png,A\n")
    assert read_labels(tmp_path / "pictures", table) == {"Ada/1.jpg": "A", "Ada/2.png": "A"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,name\na.jpg,A\n", "no column person"),
        ("image,person\na.jpg,A\nb.jpg,\n", "line 3"),
        ("image,person\na.jpg,A\na.jpg,B\n", "line 3"),
        ("image,person\na.jpg,A\nb.jpg,B\n", "nobody in two of them"),
        ("image,person\n", "only a header"),
        ("image,person\nIngrid Sj\xf6berg.jpg,A\n", "not UTF-8"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(table, encoding="latin-1")
    with pytest.raises(UnusableLabels, match=message):
        read_labels(tmp_path, tmp_path / "labels.csv")


def test_the_command_judges_real_pictures(machine: Settings, tmp_path: Path) -> None:
    with tarfile.open(pictures()) as archive:
        names = sorted(member.name for member in archive if member.isfile())
    of_one: dict[str, list[str]] = {}
    for name in names:
        of_one.setdefault(name.rpartition("_")[0], []).append(name)
    chosen = [person for person, theirs in of_one.items() if len(theirs) >= 3][:4]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "person"])
        writer.writerows([name, person] for person in chosen for name in of_one[person][:3])
    ended = visage("evaluate", "grouping", "--images", pictures(), "--labels", tmp_path / "labels.csv", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["faces"], ended.json["people"]) == (12, 4)
    assert min(r["precision"] for r in ended.json["rounds"]) > 0.9
    for name in ("Ada_1.jpg", "Ada_2.jpg", "Bob_1.jpg"):
        (tmp_path / name).write_bytes(jpeg(landscape()))
    ended = visage("evaluate", "grouping", "--images", tmp_path)
    assert (ended.code, "no face was found in 3 pictures" in ended.err) == (1, True), ended.err
