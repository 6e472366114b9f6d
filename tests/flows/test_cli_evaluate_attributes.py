"""`visage evaluate attributes`: any describing model against labels, kept in MLflow."""

import csv
import json
from pathlib import Path

import pytest

from infra.mlflow_client import connect
from infra.settings import Settings
from tests.command import visage
from tests.pairs import pictures
from tests.reference import shared

PEOPLE = 30


@pytest.fixture
def data(tmp_path: Path) -> tuple[object, ...]:
    with shared("data/lfw_expressions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["expression"] in ("neutral", "happiness", "surprise")]
    kept = [row for label in ("neutral", "happiness") for row in rows if row["expression"] == label][:PEOPLE]
    kept += [row for row in rows if row["expression"] == "happiness"][:PEOPLE]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "expression"])
        writer.writeheader()
        writer.writerows(kept)
    return ("--images", pictures(), "--labels", tmp_path / "labels.csv")


def test_a_model_is_judged_by_labels_and_all_of_it_is_kept(machine: Settings, data: tuple[object, ...]) -> None:
    ended = visage("evaluate", "attributes", *data, "--model", "mini-xception", "--json")
    assert ended.code == 0, ended.err
    [found] = ended.json["evaluations"]
    assert (found["model"], found["attribute"]) == ("mini-xception@1", "expression")
    assert found["faces"] + len(found["without_face"]) == 2 * PEOPLE
    assert 0.5 < found["accuracy"]["value"] <= 1
    assert sum(map(sum, found["confusion"])) == found["faces"]
    run = connect(machine.mlflow_uri).get_run(ended.json["tracking_run"])
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / "expression" / "mini-xception-1"
    assert {path.name for path in folder.iterdir()} == {"report.json", "confusion.png", "estimates.json"}
    assert run.data.metrics["expression/mini-xception-1/macro_f1"] == pytest.approx(found["macro_f1"])
    estimates = json.loads((folder / "estimates.json").read_text())
    assert estimates["columns"] == ["image", "label", "estimate", "confidence"]
    right = sum(label == estimate for _, label, estimate, _ in estimates["data"])
    assert right == found["accuracy"]["count"]


def test_only_models_that_give_what_is_labelled_are_judged(machine: Settings, data: tuple[object, ...]) -> None:
    ended = visage("evaluate", "attributes", *data)
    assert ended.code == 0, ended.err
    assert "expression by mini-xception@1 on " in ended.out
    assert "dlib" not in ended.out


def test_what_cannot_be_judged_is_told_without_a_trace(
    machine: Settings, data: tuple[object, ...], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text() + "x.jpg,contempt\n")
    for options, said in (
        (data, "'contempt' is no class of expression"),
        ((*data, "--leave-out", "contempt"), "1 of 61 pictures that are named are not there: x.jpg"),
        ((*data, "--leave-out", "contempt", "--model", "dlib-age"), "dlib-age@1: none gives expression. Name one that"),
        ((*data, "--leave-out", "contempt", "--model", "dlib-resnet"), "cannot describe: it is a model to embed"),
    ):
        ended = visage("evaluate", "attributes", *options)
        assert (ended.code, ended.err.count("Traceback")) == (1, 0), ended.err
        assert said in ended.err
