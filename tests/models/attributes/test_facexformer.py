"""FaceXFormer against the official code's outputs, and its labels against the reference's lists."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from models.attributes import facexformer
from models.attributes.facexformer import FACEXFORMER, HEADS, FaceXFormer
from models.spec import CheckpointMismatch, Estimate
from models.vocabulary import AGE_GROUP, GENDER, PARSING, RACE
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

Arrays = Mapping[str, np.ndarray]
SINGLE = {
    "landmarks_68": "landmark",
    "occlusion_29": "visibility",
    "age_group": "age",
    "gender": "gender",
    "race": "race",
}


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, dict[str, Tensor]]:
    return seeded_checkpoint("facexformer")


@pytest.fixture(scope="module")
def network(checkpoint: dict[str, dict[str, Tensor]]) -> FaceXFormer:
    return facexformer.build(facexformer.official(checkpoint))


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return goldens("facexformer")


@pytest.fixture(scope="module")
def crops() -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (seeded_crops(224) - mean) / std


@pytest.fixture(scope="module")
def everything(network: FaceXFormer, crops: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return network(crops)


def celeba_order() -> list[str]:
    """Return the reference's order of the forty attributes, by our names."""
    order = [snake_case(name) for name in listed(readme("facexformer"), "(confirmed by the author, issue 15): ", ".")]
    assert len(order) == 40
    return ["gender_celeba" if name == "gender" else name for name in order]


def assert_outputs(raw: Mapping[str, Tensor], golden: Arrays, prefix: str) -> None:
    for ours, theirs in SINGLE.items():
        assert_matches(raw[ours], golden[f"{prefix}{theirs}"])
    assert_matches(torch.stack([raw[name] for name in ("pitch", "yaw", "roll")], dim=1), golden[f"{prefix}headpose"])
    attributes = torch.stack([raw[name] for name in celeba_order()], dim=1)
    assert_matches(attributes, golden[f"{prefix}attribute"])
    assert_tap(f"{prefix}parsing", raw["parsing"], golden)
    assert_matches(raw["parsing"][:, :, ::8, ::8], golden[f"{prefix}parsing_every8"])
    labels = raw["parsing"].argmax(dim=1)[:, ::4, ::4].numpy()
    assert (labels == golden[f"{prefix}parsing_argmax_every4"]).mean() > 0.999  # ties
    estimates = facexformer.interpret(raw)
    assert_matches(estimates["landmarks_68"].value, golden[f"{prefix}landmark_pixels"])


def backbone_tap(name: str, taps: Mapping[str, object]) -> Tensor:
    """Return what our backbone recorded under the official code's name."""
    if stage := re.fullmatch(r"backbone\.(stage|merge)(\d)", name):
        level, merged = taps[f"layers.{int(stage[2]) - 1}"]  # type: ignore[misc, attr-defined]
        return level if stage[1] == "stage" else merged
    ours = re.sub(r"backbone\.0\.(\d)\.(\d+)", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}", name)
    return taps[ours.removeprefix("backbone.")]  # type: ignore[return-value]


def test_outputs_and_intermediates_match_the_official_code(network: FaceXFormer, golden: Arrays, crops: Tensor) -> None:
    with recorded(network) as taps, torch.inference_mode():
        raw = network(crops)
        position = network.position(56, 56)
    assert_outputs(raw, golden, "")
    assert_tap("pe", position.contiguous(), golden)
    tokens, image = taps["transformer"]
    assert_matches(tokens, golden["tokens"])
    assert_matches(taps["hypernetwork"], golden["hyper"])
    assert_tap("decoder.keys", image, golden)
    assert_tap("upscaled", taps["output_upscaling"].contiguous(), golden)
    for layer in range(2):
        queries, keys = taps[f"transformer.layers.{layer}"]
        assert_tap(f"decoder.layers.{layer}.queries", queries, golden)
        assert_tap(f"decoder.layers.{layer}.keys", keys, golden)
    assert_tap("linear_fuse", taps["linear_fuse"], golden)
    for level in range(4):
        assert_tap(f"linear_c.{level}", taps[f"linear_c.{level}"], golden)
    for stats in (key for key in golden if key.startswith("backbone.") and key.endswith(".stats")):
        assert_tap(stats.removesuffix(".stats"), backbone_tap(stats.removesuffix(".stats"), taps), golden)


def test_wide_tokens_and_frequencies_match_the_official_code(
    checkpoint: dict[str, dict[str, Tensor]], golden: Arrays, crops: Tensor
) -> None:
    wide = dict(checkpoint["state_dict_backbone"])
    factors = {"_token.weight": 16, "mask_tokens.weight": 16, "positional_encoding_gaussian_matrix": 8}
    for key, value in checkpoint["state_dict_backbone"].items():
        wide[key] = value * next((factor for end, factor in factors.items() if key.endswith(end)), 1)
    network = facexformer.build(facexformer.official({"state_dict_backbone": wide}))
    with recorded(network) as taps, torch.inference_mode():
        raw = network(crops)
        assert_tap("wide.pe", network.position(56, 56).contiguous(), golden)
    assert_matches(taps["transformer"][0], golden["wide.tokens"])
    assert_outputs(raw, golden, "wide.")


def golden_estimates(golden: Arrays) -> dict[str, Estimate]:
    """Interpret the official code's raw outputs, put under names by the reference's own lists."""
    raw = {ours: torch.from_numpy(golden[theirs]) for ours, theirs in SINGLE.items()}
    raw |= dict(zip(("pitch", "yaw", "roll"), torch.from_numpy(golden["headpose"]).T, strict=True))
    raw |= dict(zip(celeba_order(), torch.from_numpy(golden["attribute"]).T, strict=True))
    raw["parsing"] = torch.from_numpy(golden["parsing_every8"])
    return facexformer.interpret(raw)


def test_quantities_have_the_meaning_of_the_reference(golden: Arrays) -> None:
    estimates = golden_estimates(golden)
    assert estimates.keys() == {attribute.name for attribute in FACEXFORMER.attributes}
    pose = torch.stack([estimates[name].value for name in ("pitch", "yaw", "roll")], dim=1)
    assert "pitch, yaw, roll in **radians**" in readme("facexformer")
    assert_matches(pose, golden["headpose_degrees"])
    assert_matches(estimates["landmarks_68"].value, golden["landmark_pixels"])
    assert "**1 means occluded, 0 visible**" in readme("facexformer")
    assert_matches(estimates["occlusion_29"].value, golden["visibility_probability"])
    for position, name in enumerate(celeba_order()):
        if name != "gender_celeba":
            assert_matches(estimates[name].value, golden["attribute_probability"][:, position])
    opinion = estimates["gender_celeba"].probabilities
    assert opinion is not None
    assert_matches(opinion[:, GENDER.classes.index("male")], golden["attribute_probability"][:, 20])


def test_categories_have_the_meaning_of_the_reference(golden: Arrays) -> None:
    text, estimates = readme("facexformer"), golden_estimates(golden)
    ages = [item.replace("70 and over", "70+") for item in listed(text, "8 groups, softmax/argmax: ", " (author")]
    genders = [item.split()[1] for item in listed(text, "**Gender**: ", " (issue")]
    races = [item.split()[1].lower().rstrip("s") for item in listed(text, "**Race**: ", " (issue")]
    assert (len(ages), genders, len(races)) == (8, ["male", "female"], 5)
    for attribute, labels, theirs in ((AGE_GROUP, ages, "age"), (GENDER, genders, "gender"), (RACE, races, "race")):
        estimate, softmax = estimates[attribute.name], torch.from_numpy(golden[theirs]).softmax(dim=1)
        assert estimate.probabilities is not None
        for position, label in enumerate(labels):
            torch.testing.assert_close(estimate.probabilities[:, attribute.classes.index(label)], softmax[:, position])
        named = [attribute.classes[i] for i in estimate.value.tolist()]
        assert named == [labels[i] for i in golden[f"{theirs}_argmax"]]


def test_parsing_classes_have_the_meaning_of_the_reference() -> None:
    labels = [item.split(" ", 1)[1] for item in listed(readme("facexformer"), "which gives: ", ";")]
    sides = {"left eyebrow": "image left brow", "right eyebrow": "image right brow"}
    sides |= {"left eye": "image left eye", "right eye": "image right eye"}
    one_pixel_for_each = torch.eye(11).mul(50)[None, :, None]  # (1, 11 classes, 1, 11 columns)
    estimate = facexformer.interpret({"parsing": one_pixel_for_each})["parsing"]
    named = [PARSING.classes[i] for i in estimate.value.flatten().tolist()]
    assert named == [sides.get(label, label).replace(" ", "_") for label in labels]


def test_only_the_wanted_heads_are_run(network: FaceXFormer, crops: Tensor, everything: dict[str, Tensor]) -> None:
    wanted = frozenset({"yaw", "smiling", "eyeglasses"})
    with recorded(network) as taps, torch.inference_mode():
        raw = network(crops[:1], wanted)
    assert raw.keys() == wanted
    assert {name for name in taps if re.fullmatch(r"heads\.\w+", name)} == {"heads.pose", "heads.attribute"}
    assert not {"output_upscaling", "hypernetwork"} & taps.keys()
    assert (taps["heads.pose"].shape[1], taps["heads.attribute"].shape[1]) == (1, 2)  # no row that nobody wants
    for name in wanted:
        torch.testing.assert_close(raw[name], everything[name][:1], atol=2e-5, rtol=1e-5)


def test_nothing_sensitive_is_computed_when_only_the_harmless_is_wanted(network: FaceXFormer, crops: Tensor) -> None:
    harmless = frozenset(attribute.name for attribute in FACEXFORMER.attributes if not attribute.sensitive)
    with recorded(network) as taps, torch.inference_mode():
        network(crops[:1], harmless)
    assert not {"heads.age", "heads.gender", "heads.race"} & taps.keys()
    assert taps["heads.attribute"].shape[1] == sum(not attribute.sensitive for attribute in HEADS["attribute"]) == 24


def test_unknown_attributes_are_refused_by_name(network: FaceXFormer, crops: Tensor) -> None:
    with pytest.raises(ValueError, match="gives no expression"):
        network(crops, frozenset({"expression"}))


def test_estimates_do_not_depend_on_batch_neighbours(
    network: FaceXFormer, crops: Tensor, everything: dict[str, Tensor]
) -> None:
    with torch.inference_mode():
        alone = network(crops[1:])
    for name in everything:
        torch.testing.assert_close(everything[name][1:], alone[name], atol=2e-5, rtol=1e-5)


def test_optimiser_state_and_unused_norm_are_dropped(checkpoint: dict[str, dict[str, Tensor]]) -> None:
    own = facexformer.official({**checkpoint, "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}, "epoch": 12})
    assert own.keys() == facexformer.official(checkpoint).keys()
    assert not any(key.startswith("backbone") for key in own)


def test_another_models_file_is_refused_by_name(checkpoint: dict[str, dict[str, Tensor]]) -> None:
    weights = dict(checkpoint["state_dict_backbone"])
    del weights["face_decoder.race_token.weight"]
    with pytest.raises(CheckpointMismatch, match=r"race_token\.weight; this file has not"):
        facexformer.official({"state_dict_backbone": weights})
    with pytest.raises(CheckpointMismatch, match=r"no 'patch_embed\.proj\.weight' \(they have conv1"):
        facexformer.build({"conv1.weight": torch.zeros(1)})
