"""`visage evaluate`: any recognition model, alone or beside others, kept in MLflow and in the catalog."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion
from infra.mlflow_client import connect
from infra.ray_cluster import device
from infra.settings import Settings
from tasks.evaluation import timing
from tests.command import visage
from tests.pairs import few_pairs, pictures


@pytest.fixture
def data(tmp_path: Path) -> tuple[object, ...]:
    return ("--images", pictures(), "--pairs", few_pairs(tmp_path))


def tracked(settings: Settings, run_id: str) -> tuple[Any, dict[str, Path]]:
    """A run of MLflow and its files."""
    run = connect(settings.mlflow_uri).get_run(run_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return run.data, {path.name: path for path in folder.iterdir()}


def calibrated(settings: Settings) -> dict[str, int]:
    """The models that the catalog knows a calibration of, and on how many pairs of two people."""
    with Catalog(settings.catalog_url).read() as session:
        rows = session.scalars(select(ModelVersion).where(ModelVersion.calibration.is_not(None)))
        return {row.name: (row.calibration or {})["different_pairs"] for row in rows}


def test_model_of_the_settings_is_verified_calibrated_and_tracked(machine: Settings, data: tuple[object, ...]) -> None:
    ended = visage("evaluate", "verification", *data, "--recalibrate", "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["model"], ended.json["pairs"], ended.json["not_calibrated"]) == ("dlib-resnet@1", 20, "")
    assert ended.json["calibration_stays"] == ""
    run, files = tracked(machine, ended.json["tracking_run"])
    assert run.metrics["accuracy"] == ended.json["accuracy"] > 0.9
    assert run.params["device"] == device()
    assert files.keys() == {"roc.png", "report.json", "calibration.json"}
    assert calibrated(machine) == {"dlib-resnet": 10}


def test_calibration_on_more_pairs_stays_unless_another_is_asked_for(
    machine: Settings, data: tuple[object, ...]
) -> None:
    ended = visage("evaluate", "verification", *data)
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "dlib-resnet@1 stays calibrated on 1387 pairs of two people (LFW folds 1-5" in said
    assert "the 10 of this evaluation are fewer. --recalibrate takes them all the same." in said
    assert calibrated(machine) == {"dlib-resnet": 1387}


def test_another_model_is_verified_by_name(machine: Settings, data: tuple[object, ...]) -> None:
    ended = visage("evaluate", "verification", *data, "--model", "lightcnn-9")
    assert ended.code == 0, ended.err
    assert "Verification by lightcnn-9@1 on 20 pairs" in ended.out
    assert "in a thousand reaches is estimated from 10 of them" in " ".join(ended.out.split())
    assert calibrated(machine) == {"lightcnn-9": 10}


def test_what_cannot_be_calibrated_is_measured_all_the_same_and_says_why(
    machine: Settings, data: tuple[object, ...], tmp_path: Path
) -> None:
    pairs = (tmp_path / "pairs.csv").read_text().splitlines()
    swapped = [f"{row[:-1]}{1 - int(row[-1])}" for row in pairs[1:]]
    (tmp_path / "pairs.csv").write_text("\n".join([pairs[0], *swapped]))
    ended = visage("evaluate", "verification", *data)
    assert ended.code == 0, ended.err
    assert "dlib-resnet@1 is not calibrated: pairs of one person are not more similar" in ended.out
    assert calibrated(machine) == {}


def test_models_are_compared_side_by_side_and_kept_with_plots(
    machine: Settings, data: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "AT_LEAST", 1)
    ended = visage("evaluate", "compare", "dlib-resnet", "lightcnn-9@1", *data, "--budget-ms", "500", "--json")
    assert ended.code == 0, ended.err
    dlib, lightcnn = ended.json["models"]
    assert (dlib["model"], dlib["dimension"], dlib["licence"]) == ("dlib-resnet@1", 128, "CC0-1.0")
    assert lightcnn["fits"] == (lightcnn["pipeline_ms"] <= 500)
    run, files = tracked(machine, ended.json["tracking_run"])
    assert run.metrics["accuracy/dlib-resnet 1"] == dlib["accuracy"]
    assert run.metrics["pipeline_ms/lightcnn-9 1"] == lightcnn["pipeline_ms"]
    assert run.params["times"] == ended.json["how"]
    assert files.keys() == {"roc.png", "accuracy_over_ms.png", "comparison.json"}
    table = json.loads(files["comparison.json"].read_text())
    assert table["columns"][:2] == ["model", "accuracy"]
    assert [row[0] for row in table["data"]] == ["dlib-resnet@1", "lightcnn-9@1"]


def test_what_cannot_be_evaluated_is_told_without_a_trace(
    machine: Settings, data: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "wrong.csv").write_text("a,b\n")
    (tmp_path / "empty").mkdir()
    images, pairs = data[1], data[3]
    with zipfile.ZipFile(tmp_path / "lfw.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
    for options, said in (
        ((*data, "--model", "mtcnn"), "mtcnn cannot embed: it is a model to detect"),
        ((*data, "--model", "dlib-resnet@9"), "dlib-resnet has no version '9'; there are 1 (champion)"),
        ((*data, "--model", "sface-ir-50"), "Run 'visage models register sface-ir-50"),
        (("--images", images, "--pairs", tmp_path / "wrong.csv"), "wrong.csv, line 1: no column fold, same"),
        (("--images", tmp_path / "lfw.zip", "--pairs", pairs), "lfw.zip: no tar file of pictures"),
        (("--images", tmp_path / "empty", "--pairs", pairs), "pictures that are named are not there: "),
    ):
        ended = visage("evaluate", "verification", *options)
        assert (ended.code, ended.err.count("Traceback")) == (1, 0), ended.err
        assert said in ended.err
    assert visage("evaluate", "compare", "dlib-resnet", *data, "--budget-ms", "200").code == 2
