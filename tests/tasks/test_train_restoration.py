"""Training restorers: both stages learn, go on after a kill with the very steps, and become a version that restores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from infra.settings import Settings
from models.losses.adversarial import regions
from models.restoration.degradation import CLASSIC, draw
from models.template import FFHQ_512
from tasks.execution.restorer import Restorer
from tasks.model_version import find_version
from tasks.training.collection import read_collection
from tasks.training.holdout import TooFewPeople
from tasks.training.loop import STATE, Diverged
from tasks.training.restoration.objective import boxes_of
from tasks.training.restoration.options import RestorationOptions
from tasks.training.restoration.train import plan, prepare, publish, tracked
from tasks.training.restoration.worker import Job, Training
from tasks.training.run import TrainingFailed
from tests.tasks.killed_training import whole_and_killed
from tests.tasks.restoration_program import TINY, faces, one_of_two, planned, train
from tests.tasks.training_program import PEOPLE, PICTURES, labelled_pictures


def alone(job: Job) -> Training:
    return Training(job, 0, 1, torch.device("cpu"))


def take(training: Training, until: int) -> None:
    while training.step < until:
        training.take()


@pytest.mark.slow
def test_training_that_goes_on_in_the_second_stage_ends_with_the_very_weights_and_restores(
    machine: Settings, tmp_path: Path
) -> None:
    made = planned(machine, TINY)
    with tracked(made) as run:
        job = prepare(made, run.run_id)
        trained_on, kept = ({job.faces.identities[row] for row in rows} for rows in (job.rows, job.held))
        assert not trained_on & kept
        whole = alone(job)
        whole.begin()
        take(whole, 2)
        assert whole.pauses
        assert not whole.objective.restores
        whole.judge()
        codebook = whole.objective.network.quantize.embedding.weight.clone()
        take(whole, 4)
        assert whole.objective.restores
        assert torch.equal(whole.objective.network.quantize.embedding.weight, codebook)  # frozen from here on
        assert {"l1", "codebook", "identity", "adversarial", "component"} <= whole.sums.keys()
        whole.judge()
        assert whole.save(tmp_path / STATE)
        resumed = alone(job)
        resumed.resume(tmp_path / STATE)
        for training in (whole, resumed):
            take(training, job.steps)
            assert training.over
        expected = whole.objective.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in resumed.objective.state_dict().items())
        resumed.judge()
        resumed.save(tmp_path / STATE)
        trained = publish(made, tmp_path / STATE, run.run_id)
    assert [entry["step"] for entry in trained.history] == [2, 4, 5]
    client = MlflowClient(machine.mlflow_uri)
    logged = {metric.key for metric in client.get_metric_history(run.run_id, "restored/psnr")}
    assert logged == {"restored/psnr"}
    assert {"bicubic/identity", "nothing/psnr", "restored/identity"} <= trained.history[-1].keys()
    assert [file.path for file in client.list_artifacts(run.run_id, "grids")] == [
        "grids/0000004.png",
        "grids/0000005.png",
    ]
    version = find_version("restoreformer++-64@challenger", machine.weights_folder, machine.mlflow_uri)
    assert version == trained.installed.model
    assert not made.folder.exists(), "faces stay no longer than needed"
    restored = Restorer(version, "cpu")(torch.from_numpy(faces(64)[:2]), torch.zeros(2, 5, 2))
    assert restored.pixels.shape == (2, 64, 64, 3)


@pytest.mark.long
def test_two_workers_end_with_equal_weights_and_go_on_from_a_checkpoint_with_the_very_steps(
    machine: Settings, tmp_path: Path
) -> None:
    job = prepare(planned(machine, TINY.model_copy(update={"workers": 2})), "none")
    torch.multiprocessing.spawn(one_of_two, (job, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = first["whole"]
    for found in (second["whole"], first["resumed"], second["resumed"]):
        assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []
    assert first["used"].nonzero().flatten().tolist() == [0, 1], "codes that either worker has used"


@pytest.mark.long
def test_two_workers_train_both_stages_together(machine: Settings) -> None:
    trained = train(machine, TINY.model_copy(update={"workers": 2}))
    assert [entry["step"] for entry in trained.history] == [0, 2, 4, 5]


@pytest.mark.long
def test_killed_training_goes_on_and_ends_with_the_very_weights(machine: Settings, tmp_path: Path) -> None:
    options = TINY.model_copy(update={"dictionary_steps": 6, "steps": 60})
    whole, killed = whole_and_killed("tests.tasks.restoration_program", machine, tmp_path, options, kill_at=10)
    assert killed == whole


@pytest.mark.long
def test_dictionary_learns_to_rebuild_faces(machine: Settings) -> None:
    options = TINY.model_copy(update={"dictionary_steps": 30, "batch_size": 4, "dictionary_adversaries_from": 99})
    made = planned(machine, options)
    with tracked(made) as run:
        training = alone(prepare(made, run.run_id))
        training.begin()
        training.judge()
        take(training, 30)
        training.judge()
    first, last = training.history
    assert last["dictionary/psnr"] > first["dictionary/psnr"] + 3
    assert last["dictionary/codes_in_use"] > 2


def test_a_loss_that_is_not_finite_says_what_to_do(machine: Settings) -> None:
    made = planned(machine, TINY)
    training = alone(prepare(made, "none"))
    training.objective.network.decoder.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(Diverged, match=r"smaller --learning-rate than 0\.001"):
        training.take()


def test_same_training_cannot_run_twice_and_other_options_are_another_one(machine: Settings) -> None:
    made = planned(machine, TINY)
    with tracked(made), pytest.raises(TrainingFailed, match="at work in another process"), tracked(made):
        pass
    other = plan(machine, *labelled_pictures(machine.home_folder / "pictures"), TINY.model_copy(update={"steps": 4}))
    assert other.folder != made.folder


def test_too_few_faces_are_refused_before_anything_is_trained(machine: Settings) -> None:
    made = planned(machine, TINY.model_copy(update={"batch_size": 500}))
    with pytest.raises(TooFewPeople, match=r"at least 4 and 500 are needed"):
        prepare(made, "none")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 96}, "size"),
        ({"width": 48}, "width"),
        ({"degradation": "rain"}, "degradation"),
        ({"stepps": 3}, "stepps"),
        ({"holdout": 1.0}, "holdout"),
        ({"batch_size": 5, "workers": 2}, "cannot share a batch of 5 faces evenly.* take --batch-size 6"),
        ({"batch_size": 2, "workers": 4}, "cannot share a batch of 2 faces.* take --batch-size 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RestorationOptions(**wrong)


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_every_size_has_sixteen_positions_along_a_side_and_an_entry_in_the_table(size: int) -> None:
    options = RestorationOptions(size=size)
    assert size / 2 ** (len(options.architecture.widths) - 1) == 16
    assert options.model == ("restoreformer++" if size == 512 else f"restoreformer++-{size}")
    if size == 512:
        assert options.architecture.widths == (64, 128, 128, 256, 256, 512)


def test_components_are_cut_where_eyes_and_mouth_lie() -> None:
    template = FFHQ_512.scaled("ffhq-128", 128)
    plain = draw(np.random.default_rng(0), CLASSIC, 128)
    boxes = boxes_of(template, [plain])
    assert boxes.shape == (3, 1, 4)
    centres = (boxes[..., :2] + boxes[..., 2:] - 1)[:, 0] / 2
    points = torch.tensor(template.points)
    mouth = points[3:].mean(dim=0)
    expected = torch.stack([points[0], points[1], mouth])
    if plain.flip:
        expected = torch.stack([points[1], points[0], mouth])
        expected[:, 0] = 128 - expected[:, 0]
    assert (centres - expected).abs().max() < 1
    ramp = torch.arange(128.0).expand(1, 3, 128, 128)
    crop = regions(ramp, torch.tensor([[32.0, 40.0, 64.0, 72.0]]), 16)
    torch.testing.assert_close(crop[0, 0, 0], torch.arange(16) * 2 + 32.5, rtol=0, atol=1e-3)


def test_labels_are_those_of_recognition(tmp_path: Path) -> None:
    folder, labels = labelled_pictures(tmp_path)
    assert len(read_collection(folder, labels).names) == PEOPLE * PICTURES
