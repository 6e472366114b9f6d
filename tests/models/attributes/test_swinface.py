"""SwinFace against the official code's outputs, and its labels against the reference's lists."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attributes import swinface
from models.attributes.swinface import OUTPUTS, SPECS, SUBNETS, SWINFACE, SwinFace
from models.spec import CheckpointMismatch
from models.vocabulary import EXPRESSION
from tests.models.attributes.golden import (
    assert_matches,
    assert_tap,
    goldens,
    listed,
    readme,
    recorded,
    seeded_checkpoint,
    seeded_crops,
    snake_case,
)

RAF_DB = {"Surprise": "surprise", "Fear": "fear", "Disgust": "disgust", "Happy": "happiness", "Sad": "sadness",
          "Anger": "anger", "Neutral": "neutral"}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, dict[str, Tensor]]:
    return seeded_checkpoint("swinface")


@pytest.fixture(scope="module")
def network(checkpoint: dict[str, dict[str, Tensor]]) -> SwinFace:
    return swinface.build(swinface.official(checkpoint))


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    return goldens("swinface")


@pytest.fixture(scope="module")
def crops() -> Tensor:
    return (seeded_crops(112) - 0.5) / 0.5


def test_outputs_and_intermediates_match_the_official_code(
    network: SwinFace, golden: Mapping[str, np.ndarray], crops: Tensor
) -> None:
    with recorded(network) as taps, torch.inference_mode():
        raw = network(crops)
    for name in golden["names"]:
        assert_matches(raw["embedding" if name == "Recognition" else snake_case(name)], golden[name])
    assert_matches(torch.stack([taps[f"fam.{i}"] for i in range(11)], dim=1), golden["fam"])
    assert_matches(torch.stack([taps[f"tss.{i}"] for i in range(11)], dim=1), golden["tss"])
    for stats in (key for key in golden if key.endswith(".stats") and not key.startswith("features.")):
        name = stats.removesuffix(".stats")
        tap = taps[name.replace("fam.nets.", "fam.")]
        assert_tap(name, tap[1] if isinstance(tap, tuple) else tap, golden)


def test_multi_level_features_match_the_official_code(
    network: SwinFace, golden: Mapping[str, np.ndarray], crops: Tensor
) -> None:
    with torch.inference_mode():
        *local, last = network.backbone.levels(crops)
    pooled = [torch.nn.functional.adaptive_avg_pool2d(level, 7) for level in local]
    assert_tap("features.local", torch.cat(pooled, dim=1), golden)
    assert_tap("features.global", last.contiguous(), golden)


def test_every_output_has_the_meaning_of_the_reference(
    golden: Mapping[str, np.ndarray], network: SwinFace, crops: Tensor
) -> None:
    raw = {("embedding" if n == "Recognition" else snake_case(n)): torch.from_numpy(golden[n]) for n in golden["names"]}
    estimates = SWINFACE.interpret(raw) if SWINFACE.interpret else {}
    assert {attribute.name for attribute in SWINFACE.attributes} == estimates.keys()

    text = readme("swinface")
    order = re.search(r"RAF-DB order: (.*?)\.", text)
    assert order
    labels = [RAF_DB[item.split()[1]] for item in order[1].split(", ")]
    softmax = torch.from_numpy(golden["Expression"]).softmax(dim=1)
    expression = estimates["expression"].probabilities
    assert expression is not None
    for position, label in enumerate(labels):
        torch.testing.assert_close(expression[:, EXPRESSION.classes.index(label)], softmax[:, position])

    assert '"Gender" is CelebA\'s "Male": 0 = female, 1 = male' in text
    gender = estimates["gender"].probabilities
    assert gender is not None
    torch.testing.assert_close(gender, torch.from_numpy(golden["Gender"]).softmax(dim=1))
    assert "index 0 = no, index 1 = yes" in text
    torch.testing.assert_close(estimates["no_beard"].value, torch.from_numpy(golden["No Beard"]).softmax(dim=1)[:, 1])
    torch.testing.assert_close(estimates["age"].value, torch.from_numpy(golden["Age"])[:, 0])
    assert estimates["age"].confidence.isnan().all()


def test_subnets_give_what_the_reference_says_in_its_order() -> None:
    text = readme("swinface")
    table = re.findall(r"\| (\d+) \| [\d, to]+ \| ([^|]+) \|", text[text.index("| net | layers N |") :])
    rows = [[snake_case(re.sub(r" \(\d\)", "", name.strip())) for name in row.split(",")] for _, row in table]
    assert [list(names) for names in SUBNETS] == rows
    attributes = listed(text, "map by name): ", ".")
    assert {snake_case(name) for name in attributes} == set(OUTPUTS) - {"age", "expression"}


@pytest.mark.parametrize(
    ("wanted", "subnets"),
    [({"smiling"}, {2}), ({"eyeglasses", "goatee", "expression"}, {2, 5, 9}), ({"embedding"}, set())],
)
def test_only_the_wanted_heads_are_run(network: SwinFace, crops: Tensor, wanted: set[str], subnets: set[int]) -> None:
    with recorded(network) as taps, torch.inference_mode():
        raw = network(crops, frozenset(wanted))
    assert raw.keys() == wanted
    assert {int(name.split(".")[1]) for name in taps if re.fullmatch(r"(fam|tss)\.\d+", name)} == subnets
    run = {OUTPUTS[int(name.split(".")[1])] for name in taps if name.startswith("om.")}
    assert run == wanted - {"embedding"}
    assert ("backbone.feature" in taps) == ("embedding" in wanted)


def test_nothing_sensitive_is_computed_when_only_the_harmless_is_wanted(network: SwinFace, crops: Tensor) -> None:
    harmless = frozenset(attribute.name for attribute in SWINFACE.attributes if not attribute.sensitive)
    with recorded(network) as taps, torch.inference_mode():
        network(crops, harmless)
    run = {OUTPUTS[int(name.split(".")[1])] for name in taps if name.startswith("om.")}
    assert run == harmless
    assert not {"fam.0", "fam.1"} & taps.keys()  # gender; age and young: nothing else lives there


def test_unknown_attributes_are_refused_by_name(network: SwinFace, crops: Tensor) -> None:
    with pytest.raises(ValueError, match="gives no race"):
        network(crops, frozenset({"race"}))


def test_embedding_model_gives_the_same_vector_and_needs_the_backbone_only(
    checkpoint: dict[str, dict[str, Tensor]], golden: Mapping[str, np.ndarray], crops: Tensor
) -> None:
    spec = SPECS[1]
    network = spec.build(spec.official({"state_dict_backbone": checkpoint["state_dict_backbone"]}))
    with torch.inference_mode():
        embedding = network(crops)
    assert_matches(embedding, golden["Recognition"])
    assert embedding.shape[1] == spec.dimension


def test_estimates_do_not_depend_on_batch_neighbours(network: SwinFace, crops: Tensor) -> None:
    with torch.inference_mode():
        together, alone = network(crops), network(crops[1:])
    for name in together:
        torch.testing.assert_close(together[name][1:], alone[name], atol=2e-5, rtol=1e-5)


def test_training_leftovers_are_dropped(checkpoint: dict[str, dict[str, Tensor]]) -> None:
    backbone = checkpoint["state_dict_backbone"] | {
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
    }
    released = {**checkpoint, "state_dict_backbone": backbone, "epoch": 3, "state_optimizer": {"state": {}}}
    assert swinface.official(released).keys() == swinface.official(checkpoint).keys()
    assert not any("head" in key for key in swinface.official(checkpoint))


def test_another_models_file_is_refused_by_name(checkpoint: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(CheckpointMismatch, match="'state_dict_backbone'; this file has conv1"):
        swinface.official({"conv1": torch.zeros(1)})
    with pytest.raises(CheckpointMismatch, match="'state_dict_fam'"):
        swinface.official({"state_dict_backbone": checkpoint["state_dict_backbone"]})
    weights = swinface.official(checkpoint)
    del weights["fam.3.norm.weight"]
    with pytest.raises(CheckpointMismatch, match=r"SwinFace: 1 missing: fam\.3\.norm\.weight"):
        swinface.build(weights)
    with pytest.raises(CheckpointMismatch, match=r"no 'feature\.2\.weight'"):
        swinface.build_embedding(weights)
