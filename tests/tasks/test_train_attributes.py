"""Training heads: shares of the labels, people kept apart, class weights, temperature, and what becomes of the result."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from infra.registry import Registry
from infra.settings import Settings
from models import table
from tasks.describe import describe_crops, describe_embeddings
from tasks.embed import embed
from tasks.evaluation.labels import Table, UnusableLabels, read_table
from tasks.model_version import find_version, load_network
from tasks.photo_faces import estimate
from tasks.recipe import Recipe
from tasks.training.attributes.fitting import Fit, class_weights, parts_of, share_of
from tasks.training.attributes.options import AttributeOptions
from tasks.training.attributes.train import (
    Plan,
    Trained,
    as_csv,
    fit,
    held_back,
    plan,
    prepare,
    publish,
    tracked,
)
from tasks.training.attributes.worker import DRAWS, Heads, Job
from tasks.training.collection import CROPS, FACES
from tasks.training.holdout import TooFewPeople
from tasks.training.run import FOLDER
from tests.tasks.training_program import PEOPLE, PICTURES, enter_tiny, synthetic_faces

QUICK = AttributeOptions(
    attribute="eyeglasses", backbone="tiny", people=r"(\d+)_", epochs=20, batch_size=8, learning_rate=0.05, holdout=0.3
)


@pytest.fixture
def settings(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine with the bundled models and a tiny recognition model."""
    shutil.copyfile(installed / "mlflow.db", tmp_path / "mlflow.db")
    (tmp_path / "weights").mkdir()
    for model in (installed / "weights").iterdir():
        if model.is_dir():
            (tmp_path / "weights" / model.name).symlink_to(model)
    made = Settings(
        home=tmp_path / "home", weights=tmp_path / "weights", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", cpus=2
    )
    monkeypatch.setattr(table, "MODELS", table.MODELS)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    enter_tiny(made)
    return made


def names() -> list[str]:
    return [f"{person:02}_{n}.jpg" for person in range(PEOPLE) for n in range(PICTURES)]


def planned_on(settings: Settings, options: AttributeOptions = QUICK) -> Plan:
    """A training whose pictures are labelled by their halves, with the faces found already: bright ones wear glasses."""
    folder = settings.home_folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name},{int(name.endswith(('0.jpg', '2.jpg', '4.jpg')))}" for name in names()]
    (folder / "labels.csv").write_text("\n".join(["image,eyeglasses", *rows]))
    planned = plan(settings, folder, folder / "labels.csv", options)
    crops = synthetic_faces()
    bright = np.array([name.endswith(("0.jpg", "2.jpg", "4.jpg")) for name in names()])
    crops[bright] = np.minimum(crops[bright].astype(int) + 60, 255).astype(np.uint8)
    found = planned.folder / "faces"
    found.mkdir(parents=True, exist_ok=True)
    np.save(found / CROPS, crops)
    facts = {"identities": list(planned.labelled.identities), "without_face": [], "names": names()}
    (found / FACES).write_text(json.dumps(facts))
    return planned


@pytest.mark.long  # `test_train_recognition` has Ray train in every run of the tests
def test_a_head_is_trained_by_ray_and_becomes_a_challenger_that_the_describe_stage_runs(settings: Settings) -> None:
    planned = planned_on(settings)
    with tracked(planned) as run:
        job = prepare(planned, run.run_id)
        trained: Trained = publish(planned, fit(planned, job), run.run_id)
    model = trained.installed.model
    assert (model.name, model.version) == ("tiny-eyeglasses", 1)
    registry = Registry(settings.mlflow_uri)
    assert registry.at("tiny-eyeglasses", "challenger").version == 1
    assert find_version("tiny-eyeglasses@challenger", settings.weights_folder, settings.mlflow_uri) == model
    assert [row["share"] for row in trained.history] == [share for share, _ in DRAWS]
    assert trained.history[-1]["accuracy"] > 0.9
    assert trained.history[-1]["faces"] == len(job.trained)
    client = MlflowClient(settings.mlflow_uri)
    history = client.get_metric_history(trained.tracking_run, "accuracy/1 percent of the labels")
    assert [metric.step for metric in history] == [0, 1, 2, 3, 4]
    assert not list((settings.home_folder / FOLDER).glob("*/")), "faces stay no longer than needed"

    backbone = find_version("tiny", settings.weights_folder, settings.mlflow_uri)
    crops, wanted = synthetic_faces()[:5], frozenset({"eyeglasses"})
    by_crops = describe_crops(model, load_network(model), crops, wanted, "cpu")
    vectors = embed(load_network(backbone), backbone.spec, crops, "cpu")
    by_vectors = describe_embeddings(model, load_network(model), vectors, wanted, "cpu")
    column = estimate(model.contract, "eyeglasses", "value")
    np.testing.assert_allclose(by_crops[column], by_vectors[column], atol=1e-5)
    detector = find_version("mtcnn", settings.weights_folder, settings.mlflow_uri)
    recipe = Recipe(detector, backbone, None, (model,), wanted)
    assert recipe.heads == {model.contract}  # the same backbone: the night embeds once
    other = replace(backbone, digest="0" * 64)
    assert replace(recipe, embedder=other).heads == frozenset()


def in_this_process(job: Job, stop: int | None = None) -> Heads:
    """What a worker does, without Ray; up to `stop` steps."""
    heads = Heads(job, 0, 1, torch.device("cpu"))
    heads.begin()
    heads.judge()
    heads.join()
    return going_on(heads, stop)


def going_on(heads: Heads, stop: int | None = None) -> Heads:
    path = heads.job.folder / "state.pt"
    while not heads.over and heads.step != stop:
        heads.take()
        if heads.pauses or heads.over:
            heads.judge()
            heads.save(path)
    return heads


def test_a_training_that_was_killed_ends_with_the_very_head(settings: Settings) -> None:
    planned = planned_on(settings, QUICK.model_copy(update={"epochs": 4}))
    with tracked(planned) as run:
        job = prepare(planned, run.run_id)
        in_this_process(job)
        whole = torch.load(job.folder / "state.pt", weights_only=True)
        in_this_process(job, stop=11)  # in the midst of the third head
        again = Heads(job, 0, 1, torch.device("cpu"))
        again.resume(job.folder / "state.pt")
        assert again.step == 8
        again.join()
        going_on(again)
        resumed = torch.load(job.folder / "state.pt", weights_only=True)
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(resumed["network"][key], value) for key, value in whole["network"].items())


def test_faces_stay_for_a_training_that_was_interrupted_and_for_none_that_was_refused(settings: Settings) -> None:
    planned = planned_on(settings)
    with pytest.raises(KeyboardInterrupt), tracked(planned):
        raise KeyboardInterrupt
    assert (planned.folder / "faces" / CROPS).exists()
    refused = replace(planned, options=QUICK.model_copy(update={"holdout": 0.02}))
    with pytest.raises(TooFewPeople), tracked(planned) as run:
        prepare(refused, run.run_id)
    assert not (planned.folder / "faces").exists()


def test_a_training_goes_on_from_another_place_and_against_another_rival(settings: Settings) -> None:
    planned = planned_on(settings)
    with pytest.raises(KeyboardInterrupt), tracked(planned) as first:
        raise KeyboardInterrupt
    moved = replace(planned.labelled, images=settings.home_folder / "elsewhere")
    options = planned.options.model_copy(update={"against": "fairface"})
    with tracked(replace(planned, labelled=moved, options=options)) as run:
        assert run.run_id == first.run_id
    tags = MlflowClient(settings.mlflow_uri).get_run(run.run_id).data.tags
    assert (tags["pictures"], tags["against"]) == (str(moved.images), "fairface")


def test_people_kept_for_judging_are_trained_on_by_no_head(settings: Settings) -> None:
    planned = planned_on(settings)
    with tracked(planned) as run:
        job = prepare(planned, run.run_id)
    who = job.faces.identities
    held, trained = ({who[row] for row in rows} for rows in (job.held, job.trained))
    assert not held & trained
    assert len(held) == round(0.3 * PEOPLE)
    for share, draw in DRAWS:
        rows = share_of(job.trained, share, draw)
        assert set(rows) <= set(job.trained)
        assert len(rows) == max(1, round(share * len(job.trained)))
    csv = as_csv(held_back(planned, job)).splitlines()
    assert csv[0] == "image,eyeglasses"
    assert {line.split(",")[0] for line in csv[1:]} == {job.faces.names[row] for row in job.held}


def test_held_back_labels_are_read_again_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "held_back.csv"
    labels = Table(path, ("Smith, John/1.jpg", '"b".jpg'), {"expression": ("neutral", "happiness")}, (2, 3))
    path.write_text(as_csv(labels), encoding="utf-8")
    assert read_table(path) == labels


def test_temperature_is_decided_by_people_whom_the_head_is_not_fitted_to() -> None:
    who = [f"person {n // 4}" for n in range(80)]
    parts = parts_of(who, np.arange(80))
    assert not {who[row] for row in parts.fitted} & {who[row] for row in parts.calibrating}
    assert len(parts.fitted) + len(parts.calibrating) == 80
    few = parts_of(["one"] * 3, np.arange(3))
    assert few.fitted.tolist() == few.calibrating.tolist() == [0, 1, 2]


def test_an_overconfident_head_is_cooled() -> None:
    torch.manual_seed(0)
    vectors, labels = F.normalize(torch.randn(200, 16)), torch.randint(2, (200,))
    hot = Fit(
        QUICK.model_copy(update={"epochs": 100, "batch_size": 64, "weight_decay": 0.0}), vectors, labels, 2, seed=0
    )
    while not hot.over:
        hot.take()
    others, truth = F.normalize(torch.randn(200, 16)), torch.randint(2, (200,))
    before = F.cross_entropy(hot.head(others), truth)
    hot.calibrate(others, truth)
    assert hot.head.temperature > 2  # labels by chance: nothing can be known
    assert F.cross_entropy(hot.head(others), truth) < before


def test_class_weights_make_up_for_frequency_and_leave_out_classes_that_nobody_has() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert class_weights(labels, 3, 0.0).tolist() == pytest.approx([1, 1, 0])
    all_alike = class_weights(labels, 3, 1.0)
    assert (all_alike[0] * 90).item() == pytest.approx((all_alike[1] * 10).item())
    between = class_weights(labels, 3, 0.5)
    assert (between[1] / between[0]).item() == pytest.approx(3)
    assert (between[0] * 90 + between[1] * 10).item() == pytest.approx(100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attribute": "yaw"}, "no head can be trained for 'yaw'; attributes with classes are age_group, gender"),
        ({"class_weights": 2}, "class_weights"),
        ({"epoch": 3}, "epoch"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AttributeOptions(**wrong)


@pytest.mark.parametrize(
    ("content", "people", "message"),
    [
        ("image,mood\na.jpg,1\n", "", "no column eyeglasses; there are image, mood"),
        ("image,eyeglasses\na.jpg,1\nb.jpg,yes\n", "", "all pictures are labelled yes; a head needs two classes"),
        ("image,eyeglasses\na.jpg,1\nb.jpg,0\n", "(", "is no regular expression"),
        ("image,eyeglasses\na.jpg,1\nb.jpg,0\n", "a", "has no group"),
        ("image,eyeglasses\na.jpg,1\nb.jpg,0\n", "(a)", "line 3: 'b.jpg' does not fit"),
    ],
)
def test_labels_that_do_not_say_what_a_head_needs_are_refused(
    settings: Settings, tmp_path: Path, content: str, people: str, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UnusableLabels, match=message):
        plan(settings, tmp_path, tmp_path / "labels.csv", QUICK.model_copy(update={"people": people}))


def test_who_is_on_a_picture_is_read_of_a_column_or_a_name(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,eyeglasses,identity\na_1.jpg,1,Ada\na_2.jpg,0,Ada\nb_1.jpg,1,Bo\n")
    of = partial(plan, settings, tmp_path, tmp_path / "labels.csv")
    assert of(QUICK.model_copy(update={"people": ""})).labelled.identities == ("Ada", "Ada", "Bo")
    assert of(QUICK.model_copy(update={"people": r"(.+)_\d"})).labelled.identities == ("a", "a", "b")
