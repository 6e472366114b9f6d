"""`visage evaluate fairness` on real faces: groups that people wrote down, and thirds of the photographs."""

import csv
from pathlib import Path

import pytest

from infra.mlflow_client import connect
from infra.settings import Settings
from infra.wheels import sha256
from tasks.model_version import find_version
from tests.command import visage
from tests.pairs import few_pairs, pictures
from tests.portraits import jpeg, landscape
from tests.reference import shared


@pytest.fixture
def data(tmp_path: Path) -> tuple[object, ...]:
    """Pairs of LFW, and as groups the expressions on their pictures."""
    pairs = few_pairs(tmp_path, count=8)
    with pairs.open(newline="") as file:
        names = {row[side] for row in csv.DictReader(file) for side in "ab"}
    with shared("data/lfw_expressions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] in names and row["expression"] != "contempt"]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "expression"])
        writer.writeheader()
        writer.writerows(rows)
    return ("--images", pictures(), "--pairs", pairs, "--labels", tmp_path / "labels.csv")


@pytest.mark.slow
def test_groups_of_photographs_are_judged_and_everything_is_kept(
    machine: Settings, data: tuple[object, ...], tmp_path: Path
) -> None:
    page = tmp_path / "fairness.html"
    options = ("--measured", "brightness", "--measured", "yaw", "--minimum", 10, "--out", page, "--json")
    ended = visage("evaluate", "fairness", *data, *options)
    assert ended.code == 0, ended.err
    found = ended.json
    assert {info["name"] for info in found["measures"]} == {
        "false rejects", "false accepts", "expression by mini-xception@1: accuracy",
        "expression by mini-xception@1: macro-F1",
    }  # fmt: skip
    accuracies = [cell for cell in found["cells"] if cell["measure"].endswith("accuracy")]
    thirds = [cell for cell in accuracies if cell["groups"].keys() == {"brightness"}]
    assert [cell["groups"]["brightness"] for cell in thirds] == ["third 1 (lowest)", "third 2", "third 3 (highest)"]
    everybody = next(cell for cell in accuracies if not cell["groups"])
    assert sum(cell["count"] for cell in thirds) == everybody["count"]
    run = connect(machine.mlflow_uri).get_run(found["tracking_run"])
    pairs = data[3]
    facts = {"pairs": str(pairs), "pairs_sha256": sha256(pairs), "groups_sha256": "", "detector": "mtcnn@1"}
    assert facts.items() <= run.data.params.items()
    dlib = find_version("dlib-resnet", machine.weights_folder, machine.mlflow_uri)
    assert run.data.params["contract"] == dlib.contract
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    names = {path.name for path in folder.iterdir()}
    assert {"fairness.html", "fairness.json", "false_rejects.png"} <= names
    assert (folder / "fairness.html").read_text() == page.read_text()


def test_what_cannot_be_judged_is_told_without_a_trace(
    machine: Settings, data: tuple[object, ...], tmp_path: Path
) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("image,skin type\nnobody.jpg,IV\n")
    labels = tmp_path / "faceless.csv"
    labels.write_text("image,expression\nhills.jpg,happiness\n")
    (tmp_path / "hills.jpg").write_bytes(jpeg(landscape()))
    for options, said in (
        (data, "no groups: give --groups"),
        ((*data, "--groups", groups, "--by", "age"), "no column age; there are skin type"),
        ((*data, "--groups", groups), "none of its pictures is in the pairs or the labels"),
        ((*data, "--measured", "beauty"), "beauty is not measured; what is: inter_eye_distance, sharpness"),
        (("--images", tmp_path, "--labels", labels, "--measured", "yaw"), "no face was found in 1 picture"),
        ((*data[:2], "--measured", "yaw"), "nothing to judge: give --pairs"),
    ):
        ended = visage("evaluate", "fairness", *options)
        assert (ended.code, ended.err.count("Traceback")) == (1, 0), ended.err
        assert said in ended.err
    assert visage("evaluate", "fairness", *data, "--measured", "yaw", "--minimum", 3).code == 2
