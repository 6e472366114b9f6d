"""What follows from an evaluation of restorers: nothing, unless restoring was clearly better than doing nothing."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.measure_restoration import measure_restoration
from infra import weights
from infra.registry import Registry
from infra.settings import Settings
from models import table
from models.restoration.restoreformer import RESTORER_PLUS_PLUS, Architecture, RestoreFormer
from models.template import BoxTemplate
from tasks.embedding_decision import TAG, Decision, decision_for, keep
from tasks.evaluation.restoration import (
    MIN_FACES,
    NOTHING,
    SIZES,
    Faces,
    Places,
    Row,
    chosen,
    decide,
    decision,
    degraded,
)
from tasks.evaluation.verification import Pairs, read_pairs
from tasks.model_version import ModelVersion
from tasks.recipe import PORTRAIT_TEMPLATE, current_recipe
from tasks.versioning.install import register
from tests.pairs import few_pairs, pictures
from tests.portraits import portrait

PLAIN = Row(NOTHING, 12, 48, 1.0, 25.0, 0.7, 0.3, 0.93, 0.0, 0.0, 0.9, 0.1)
BETTER = replace(PLAIN, method="restorer@1", gain=0.01, gain_low=0.004, accuracy=0.92, separation=0.11)


def test_a_clear_gain_lets_restored_faces_be_embedded() -> None:
    [size] = decide([BETTER], [PLAIN, BETTER])
    assert size.embed
    assert (size.low, size.high) == (0, 18)
    assert "gain +0.0100, at least +0.0040; accuracy 0.920 against 0.900" in size.reason


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"gain_low": -0.001}, "no clear gain"),
        ({"gain": 0.0, "gain_low": 0.0}, "no clear gain"),
        ({"accuracy": 0.89}, "less well"),
        ({"separation": 0.09}, "less well"),
        ({"faces": MIN_FACES - 1}, "too little"),
    ],
)
def test_if_doing_nothing_wins_or_ties_nothing_is_done(worse: dict[str, float], reason: str) -> None:
    row = replace(BETTER, **worse)
    [size] = decide([row], [PLAIN, row])
    assert not size.embed
    assert reason in size.reason


def test_each_size_is_decided_alone_and_sizes_meet_without_a_gap() -> None:
    own = [replace(BETTER, size=size, gain_low=0.01 if size == 16 else -0.01) for size in SIZES]
    sizes = decide(own, [*own, *(replace(PLAIN, size=size) for size in SIZES)])
    assert [size.embed for size in sizes] == [False, False, True, False]
    assert all(before.high == after.low for before, after in itertools.pairwise(sizes))
    found = decided(sizes)
    assert not found.embeds(12)
    assert found.embeds(16)
    assert not found.embeds(100)


def decided(sizes: tuple[object, ...]) -> Decision:
    version = ModelVersion("e", 1, "0" * 64, Path(), table.spec("dlib-resnet"))
    return decision(version, sizes, "run")  # type: ignore[arg-type]


def test_a_decision_stays_with_the_version_and_changes_the_recipe_only_if_it_says_yes(machine: Settings) -> None:
    before = current_recipe(machine, frozenset())
    assert before.decision is None
    assert before.restorer is not None
    for row, embeds in ((replace(BETTER, gain_low=-1.0), False), (BETTER, True)):
        sizes = decide([row], [PLAIN, row])
        keep(machine.mlflow_uri, before.restorer, decision(before.embedder, sizes, "a run"))
        after = current_recipe(machine, frozenset())
        assert after.decision is not None
        assert after.decision.embeds(12) is embeds
        assert (after.digest != before.digest) is embeds  # what is done stays done if nothing is to be done
    other = replace(before.embedder, digest="1" * 64)
    assert decision_for(after.restorer, other) is None  # another recognition model may decide otherwise


def test_a_damaged_decision_is_named(machine: Settings) -> None:
    recipe = current_recipe(machine, frozenset())
    assert recipe.restorer is not None
    damaged = replace(recipe.restorer, tags={f"{TAG}.{recipe.embedder.contract}": "{}"})
    with pytest.raises(ValueError, match="real-esrgan-x4plus@1 is no decision"):
        decision_for(damaged, recipe.embedder)


def test_degradation_is_seeded_and_smaller_faces_keep_less() -> None:
    clean = torch.from_numpy(portrait(256).copy())[None].repeat(2, 1, 1, 1)
    faces = Faces(
        clean,
        Places(torch.zeros(2, 4), torch.zeros(2, 5, 2)),
        np.full(2, 63, np.float32),
        np.zeros(0, np.int64),
        np.zeros((0, 1), np.float32),
        np.zeros(0, bool),
    )
    there = np.arange(2)
    small, again, large = (degraded(faces, there, size, "bilinear") for size in (8, 8, 24))
    assert torch.equal(small, again)
    assert not torch.equal(small[0], small[1])  # each face has a fate of its own

    def distance(made: torch.Tensor) -> float:
        return float((made.float() - clean.float()).square().mean())

    assert distance(small) > distance(large)


def test_a_face_is_framed_in_its_crop_as_in_its_photo() -> None:
    template = BoxTemplate("margin-160", 160, margin=0.1)
    boxes = torch.tensor([[380.0, 210.0, 470.0, 330.0]])
    landmarks = torch.tensor([[(405.0, 260.0), (445.0, 260.0), (425.0, 283.0), (408.0, 305.0), (442.0, 305.0)]])
    places = Places.of(boxes, landmarks)
    to_photo = PORTRAIT_TEMPLATE.transforms(boxes, landmarks)[0]
    of_crop = template.transforms(places.boxes, places.landmarks)[0]
    expected = template.transforms(boxes, landmarks)[0]
    centre = torch.full((2,), 79.5)  # of the template's crop
    there = to_photo[:, :2] @ (of_crop[:, :2] @ centre + of_crop[:, 2]) + to_photo[:, 2]
    np.testing.assert_allclose(there, expected[:, :2] @ centre + expected[:, 2], atol=1e-3)
    np.testing.assert_allclose(
        torch.linalg.det(to_photo[:, :2] @ of_crop[:, :2]), torch.linalg.det(expected[:, :2]), rtol=1e-5
    )


def test_pairs_are_drawn_from_both_kinds_the_same_every_time() -> None:
    pairs = Pairs(np.zeros(40, np.int64), tuple(map(str, range(40))), ("b",) * 40, np.arange(40) < 10)
    found = chosen(pairs, 5)
    assert (len(found), int(found.same.sum())) == (10, 5)
    assert found.a == chosen(pairs, 5).a


@pytest.mark.slow
def test_evaluation_judges_every_restorer_beside_doing_nothing_and_keeps_the_decision(
    machine: Settings, perceptual_weights: Path, tmp_path: Path
) -> None:
    """A restorer with weights of chance: it cannot win, and the pipeline goes on doing nothing."""
    enter_perceptual(machine, perceptual_weights)
    torch.manual_seed(0)
    spec = table.spec("restoreformer++-64")
    state = RestoreFormer(Architecture((32, 64, 128), 1, 32, 16), RESTORER_PLUS_PLUS).state_dict()
    stored = weights.store(machine.weights_folder, spec.name, state, licence="", source="here", origin={"seed": "0"})
    register(Registry(machine.mlflow_uri), spec, "here", stored, converted=True)
    pairs = few_pairs(tmp_path, 1)
    evaluation, run = measure_restoration(
        machine, ["restoreformer++-64"], pictures(), pairs, 2, lambda done, total: None
    )
    assert {row.method for row in evaluation.rows} == {"nothing", "bicubic", "restoreformer++-64@1"}
    nothing = [row for row in evaluation.rows if row.method == NOTHING]
    assert all(row.gain == 0 for row in nothing)
    chance = [row for row in evaluation.rows if row.method == "restoreformer++-64@1"]
    assert all(row.psnr < 20 < plain.psnr for row, plain in zip(chance, nothing, strict=True))
    assert all(row.accepted == 0 for row in chance)
    assert not any(size.embed for size in evaluation.decisions["restoreformer++-64@1"])
    assert evaluation.pictures.shape[1:] == (256 * 4, 3)
    tags = Registry(machine.mlflow_uri).versions("restoreformer++-64")[0].tags
    [kept] = [value for name, value in tags.items() if name.startswith(TAG)]
    assert Decision.model_validate_json(kept).evidence == run
    assert len(read_pairs(pairs)) == 10


def enter_perceptual(machine: Settings, installed: Path) -> None:
    spec = table.spec("st-lpips-alex")
    [version] = Registry(f"sqlite:///{installed / 'mlflow.db'}").versions(spec.name)
    folder = weights.folder_of(installed / "weights", spec.name, version.digest)
    state = weights.load(folder, version.digest)
    stored = weights.store(machine.weights_folder, spec.name, state, licence="", source="here", origin=version.tags)
    register(Registry(machine.mlflow_uri), spec, "here", stored, converted=True)
