"""Training recognition models: what becomes of labels, of the steps, of a kill, and of the result."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from infra import weights
from infra.registry import Registry
from infra.settings import Settings
from models import table
from models.lora import is_adapter
from models.losses import LOSSES
from models.recognition.elasticface import UNITS, IResNet
from tasks.model_version import find_version, load_network
from tasks.training.collection import UnusableLabels, find_faces, read_collection
from tasks.training.holdout import TooFewPeople, split
from tasks.training.loop import STATE, Diverged, schedule
from tasks.training.objective import Supervised, drawn_sides
from tasks.training.options import TrainingOptions
from tasks.training.run import FOLDER, TrainingFailed
from tasks.training.train import NotAdaptable, plan, prepare, tracked
from tasks.training.worker import TOGETHER, Training, drawn_order, parameter_groups
from tests.portraits import jpeg, landscape, portrait
from tests.tasks.killed_training import whole_and_killed
from tests.tasks.training_program import (
    PEOPLE,
    PICTURES,
    enter_tiny,
    enter_tiny_adapted,
    labelled_pictures,
    train,
    with_faces,
)

TINY = TrainingOptions(backbone="tiny", epochs=3, batch_size=16, learning_rate=0.01, holdout=0.4)


@pytest.fixture
def settings(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine with the bundled models and a tiny one."""
    shutil.copyfile(installed / "mlflow.db", tmp_path / "mlflow.db")
    (tmp_path / "weights").mkdir()
    for model in (installed / "weights").iterdir():
        if model.is_dir():
            (tmp_path / "weights" / model.name).symlink_to(model)
    made = Settings(
        home=tmp_path / "home",
        weights=tmp_path / "weights",
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
        cpus=2,
    )
    monkeypatch.setattr(table, "MODELS", table.MODELS)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # as often as Ray looks for reports of the workers
    enter_tiny(made)
    return made


def histories(settings: Settings, run: str) -> Callable[[str], list[tuple[int, float]]]:
    client = MlflowClient(settings.mlflow_uri)
    return lambda metric: [(m.step, m.value) for m in client.get_metric_history(run, metric)]


def alone(settings: Settings, options: TrainingOptions) -> Training:
    """A training in this process, without Ray, that has begun."""
    planned = plan(settings, *labelled_pictures(settings.home_folder / "pictures"), options)
    with_faces(planned)
    training = Training(prepare(planned, "none"), 0, 1, torch.device("cpu"))
    training.begin()
    return training


@pytest.mark.slow
def test_trained_backbone_is_the_challenger_and_the_champion_stays(settings: Settings) -> None:
    trained = train(settings, TINY)
    model = trained.installed.model
    assert (model.name, model.version) == ("tiny", 2)
    registry = Registry(settings.mlflow_uri)
    assert registry.at("tiny", "challenger").version == 2
    assert find_version("tiny", settings.weights_folder, settings.mlflow_uri).version == 1
    assert find_version("tiny@challenger", settings.weights_folder, settings.mlflow_uri) == model
    assert trained.after["accuracy/full"] > trained.before["accuracy/full"]
    history = histories(settings, trained.tracking_run)
    for metric in ("accuracy/16px", "accuracy/24px", "accuracy/32px", "accuracy/full", "tar_at_far_0.01/full"):
        assert [step for step, _ in history(metric)] == [0, 1, 2, 3]
    assert [step for step, _ in history("train/loss")] == [1, 2, 3]
    assert MlflowClient(settings.mlflow_uri).get_run(trained.tracking_run).info.status == "FINISHED"
    assert not list((settings.home_folder / FOLDER).glob("*/")), "faces stay no longer than needed"


@pytest.mark.long
def test_adapters_become_a_model_of_their_own_around_the_very_backbone(settings: Settings) -> None:
    trained = train(settings, TINY.model_copy(update={"lora": 2}))
    model = trained.installed.model
    assert (model.name, model.version) == ("tiny-lora", 1)
    assert find_version("tiny-lora", settings.weights_folder, settings.mlflow_uri) == model
    backbone = find_version("tiny", settings.weights_folder, settings.mlflow_uri)
    assert model.contract != backbone.contract
    adapted, plain = (weights.load(v.weights, v.digest) for v in (model, backbone))
    assert all(torch.equal(adapted[f"backbone.{key}"], value) for key, value in plain.items())
    assert adapted["backbone.conv.lora_up.weight"].abs().sum() > 0
    x = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        assert not torch.equal(load_network(model)(x), load_network(backbone)(x))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_whole_networks_and_adapters(settings: Settings, loss: str, rank: int | None) -> None:
    training = alone(settings, TINY.model_copy(update={"loss": loss, "lora": rank}))
    before = {key: value.clone() for key, value in training.objective.network.state_dict().items()}
    for _ in range(training.job.steps_per_epoch):
        training.take()
    assert training.sums["loss"] > 0
    after = training.objective.network.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved
    assert rank is None or all(is_adapter(key) for key in moved), "the backbone stays as it is"


def test_scale_that_elasticface_freezes_stays_one_and_the_rest_is_trained() -> None:
    spec = table.spec("iresnet")
    objective = Supervised(spec.build(IResNet(UNITS[18]).state_dict()), spec.trains, spec.preprocess, "cosface", 512, 4)
    before = {key: value.clone() for key, value in objective.named_parameters()}
    crops = torch.randint(0, 255, (4, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    objective(crops, torch.arange(4), torch.Generator())["loss"].backward()
    torch.optim.AdamW(parameter_groups(objective), lr=0.1).step()
    same = {key for key, value in objective.named_parameters() if torch.equal(value, before[key])}
    assert same == {"network.features.weight"}


def test_training_of_one_step_trains(settings: Settings) -> None:
    training = alone(settings, TINY.model_copy(update={"epochs": 1, "batch_size": 1000}))
    assert training.job.steps == 1
    before = training.objective.network.conv.weight.clone()
    training.take()
    assert training.over
    assert not torch.equal(training.objective.network.conv.weight, before)


@pytest.mark.parametrize("rank", [None, 2])
def test_weights_decay_and_biases_do_not(settings: Settings, rank: int | None) -> None:
    training = alone(settings, TINY.model_copy(update={"lora": rank}))
    trained = {key: value for key, value in training.objective.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trained.items()}
    for value in trained.values():
        value.grad = torch.zeros_like(value)
    training.optimizer.step()
    decayed = {key for key, value in trained.items() if not torch.equal(value, before[key])}
    assert decayed
    assert decayed == {key for key, value in before.items() if value.ndim > 1 and value.any()}


@pytest.mark.parametrize("rank", [None, 2])
def test_training_that_goes_on_from_a_checkpoint_takes_the_very_steps(
    settings: Settings, tmp_path: Path, rank: int | None
) -> None:
    options = TINY.model_copy(update={"lora": rank})
    whole, broken = alone(settings, options), alone(settings, options)
    for training, steps in ((whole, 7), (broken, 4)):
        for _ in range(steps):
            training.take()
    assert broken.save(tmp_path / STATE)
    resumed = Training(broken.job, 0, 1, torch.device("cpu"))
    resumed.resume(tmp_path / STATE)
    for _ in range(3):
        resumed.take()
    expected = whole.objective.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.objective.state_dict().items())


@pytest.mark.long
def test_two_workers_train_together(settings: Settings) -> None:
    trained = train(settings, TINY.model_copy(update={"workers": 2, "lora": 2}))
    assert [step for step, _ in histories(settings, trained.tracking_run)("accuracy/full")] == [0, 1, 2, 3]


@pytest.mark.long
def test_killed_training_goes_on_and_ends_with_the_very_weights(settings: Settings, tmp_path: Path) -> None:
    options = TINY.model_copy(update={"epochs": 40, "lora": 2})
    whole, killed = whole_and_killed("tests.tasks.training_program", settings, tmp_path, options, kill_at=20)
    assert killed == whole
    client = MlflowClient(f"sqlite:///{tmp_path / 'killed.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "accuracy/full")
    assert sorted({metric.step for metric in history}) == list(range(41))


def test_loss_that_is_not_finite_ends_a_training(settings: Settings) -> None:
    training = alone(settings, TINY.model_copy(update={"learning_rate": 1.0}))
    with torch.no_grad():
        next(iter(training.objective.network.parameters())).fill_(torch.inf)
    with pytest.raises(Diverged, match=r"not finite after 0 steps: take a smaller --learning-rate than 1"):
        training.take()


@pytest.mark.long
def test_diverging_training_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(TrainingFailed, match=r"loss is not finite after .* smaller --learning-rate"):
        train(settings, TINY.model_copy(update={"learning_rate": 1e30, "epochs": 20}))


@pytest.mark.long
def test_more_workers_than_processors_are_refused(settings: Settings) -> None:
    with pytest.raises(TrainingFailed, match="3 workers, but 2 processors"):
        train(settings, TINY.model_copy(update={"workers": 3}))


def test_same_training_cannot_run_twice_at_once(settings: Settings) -> None:
    planned = plan(settings, *labelled_pictures(settings.home_folder / "pictures"), TINY)
    with tracked(planned), pytest.raises(TrainingFailed, match="at work in another process"), tracked(planned):
        pass


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"losss": "arcface"}, "losss"),
        ({"loss": "softmax"}, "no loss is called 'softmax'; known: arcface"),
        ({"lora": 0}, "lora"),
        ({"holdout": 1.0}, "holdout"),
        ({"batch_size": 1}, "batch_size"),
        ({"batch_size": 4, "workers": 4}, "cannot share a batch of 4 faces evenly.* take --batch-size 8"),
        ({"batch_size": 33, "workers": 2}, "cannot share a batch of 33 faces evenly.* take --batch-size 34"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingOptions(**wrong)


def test_backbones_that_take_no_adapters_are_refused_by_name(settings: Settings) -> None:
    pictures = labelled_pictures(settings.home_folder / "pictures")
    enter_tiny_adapted(settings)
    with pytest.raises(NotAdaptable, match="tiny-lora has adapters already: train its backbone tiny"):
        plan(settings, *pictures, TINY.model_copy(update={"backbone": "tiny-lora"}))
    table.MODELS = {name: spec for name, spec in table.MODELS.items() if name != "tiny-lora"}
    with pytest.raises(NotAdaptable, match="no adapters fit tiny; they fit dlib-resnet, "):
        plan(settings, *pictures, TINY.model_copy(update={"lora": 2}))


def test_faces_are_found_once_and_pictures_without_one_are_named(settings: Settings, tmp_path: Path) -> None:
    people = tmp_path / "people"
    for name, picture in {
        "eileen/a.jpg": portrait(256),
        "eileen/b.jpg": portrait(300),
        "hills/c.jpg": landscape(),
    }.items():
        (people / name).parent.mkdir(parents=True, exist_ok=True)
        (people / name).write_bytes(jpeg(picture))
    labelled = read_collection(people, None)
    assert labelled.identities == ("eileen", "eileen", "hills")
    detector = find_version("mtcnn", settings.weights_folder, settings.mlflow_uri)
    template = table.spec("dlib-resnet").preprocess.template
    faces = find_faces(settings, detector, template, labelled, tmp_path / "faces")
    assert (faces.identities, faces.without_face) == (("eileen", "eileen"), ("hills/c.jpg",))
    first, second = faces.crops()
    assert first.shape == (150, 150, 3)
    assert np.abs(first.astype(int) - second).mean() < 10
    shutil.rmtree(people)  # what was found is not looked for again
    assert find_faces(settings, detector, template, labelled, tmp_path / "faces") == faces


def test_changed_picture_or_label_makes_another_training(tmp_path: Path) -> None:
    folder, labels = labelled_pictures(tmp_path)
    (folder / "00_0.jpg").write_bytes(b"x")
    digests = {read_collection(folder, labels).digest}
    (folder / "00_0.jpg").write_bytes(b"yy")
    digests.add(read_collection(folder, labels).digest)
    labels.write_text(labels.read_text().replace("00_0.jpg,person 0", "00_0.jpg,person 1"))
    digests.add(read_collection(folder, labels).digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,name\na.jpg,x\n", "line 1: no column identity"),
        ("image,identity\na.jpg,\n", "line 2: image or identity is empty"),
        ("image,identity\na.jpg,x\na.jpg,y\n", "line 3: 'a.jpg' is 'y' here and 'x' before"),
        ("image,identity\n", "no labelled pictures"),
    ],
)
def test_labels_that_say_nothing_clear_are_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UnusableLabels, match=message):
        read_collection(tmp_path, tmp_path / "labels.csv")


def test_tar_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "faces.tar").touch()
    with pytest.raises(UnusableLabels, match="--labels"):
        read_collection(tmp_path / "faces.tar", None)


def test_held_out_people_are_not_trained_on_and_pairs_are_what_they_say() -> None:
    identities = [f"person {n // PICTURES}" for n in range(PEOPLE * PICTURES)] + [f"once {n}" for n in range(9)]
    found = split(identities, 0.4, seed=0)
    trained = {identities[row] for row in found.rows}
    held = {identities[row] for row in found.pairs.flatten()}
    assert not trained & held
    assert len(held) == round(0.4 * PEOPLE)
    assert len(trained) == found.classes == PEOPLE + 9 - len(held)
    assert [identities[a] == identities[b] for a, b in found.pairs] == found.same.tolist()
    assert found.same.sum() * 2 == len(found.same) == len({tuple(pair) for pair in found.pairs.tolist()})
    by_label = {label: {identities[r] for r in found.rows[found.labels == label]} for label in range(found.classes)}
    assert all(len(names) == 1 for names in by_label.values())


def test_collection_without_several_faces_of_anybody_is_refused() -> None:
    with pytest.raises(TooFewPeople, match="50 people, 0 of them with two faces or more"):
        split([str(n) for n in range(50)], 0.5, seed=0)


def test_order_holds_every_face_once_with_faces_of_one_person_together() -> None:
    labels = np.repeat(np.arange(20), np.arange(1, 21))
    order = drawn_order(labels, np.random.default_rng(0))
    assert sorted(order) == list(range(len(labels)))
    seen = labels[order]
    alone = sum(1 for left, mid, right in zip(seen, seen[1:], seen[2:], strict=False) if mid not in (left, right))
    assert alone <= 20 // TOGETHER + 1  # the odd ones
    assert not np.array_equal(order, drawn_order(labels, np.random.default_rng(1)))


def test_learning_rate_rises_once_and_falls_to_nothing() -> None:
    rates = [schedule(step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(1)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0)
    turns = np.diff(np.sign(np.diff(rates)))
    assert np.count_nonzero(turns) == 1


def test_sides_are_drawn_from_every_octave_as_often() -> None:
    sides = drawn_sides(4000, (16, 64), torch.Generator().manual_seed(0))
    assert (sides.min(), sides.max()) == (16, 64)
    assert 0.45 < (sides < 32).float().mean() < 0.55
