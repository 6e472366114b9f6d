"""Faceptor's variants against the official code's outputs, and their labels against the reference's lists."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.attributes.faceptor import PARSING_LABELS, SPECS, VARIANTS, expected_points, interpret, outputs
from models.spec import CheckpointMismatch, Estimate
from models.vocabulary import CELEBA, EXPRESSION, GENDER, PARSING
from tests.models.attributes.golden import (
    assert_matches,
    assert_tap,
    empty_checkpoint,
    goldens,
    listed,
    readme,
    recorded,
    seeded_crops,
    snake_case,
)
from tests.reference import seeded

Arrays = Mapping[str, np.ndarray]
Network = Callable[..., nn.Module]
MODELS = {spec.name: spec for spec in SPECS}
TABLES = {
    "base": "state_dict_base.tsv",
    "full": "state_dict.tsv",
    "layer-attention": "state_dict_layer_attention.tsv",
    "naive": "state_dict_naive.tsv",
}
NAIVE_MAPS = re.compile(r"\.heads\.(parsing|align)\.")
WIDE = re.compile(r"\.(query_feat|query_embed|level_embed|new_level_embed)\.")


@pytest.fixture(scope="module")
def network() -> Network:
    """Build a model by its name in the table, with the goldens' wider query tables if asked."""
    seed = cache(seeded().seeded_tensor)  # the variants share most keys

    def build(name: str, wide: bool = False) -> nn.Module:
        variant = re.sub(r"^faceptor-|-dense$|-embedding$", "", name)
        checkpoint = released(variant)
        for key, empty in checkpoint["state_dict"].items():
            if name.endswith("-dense") or not NAIVE_MAPS.search(key):  # half of Naive's weights, slow to seed
                factor = 16 if wide and WIDE.search(key) else 1
                checkpoint["state_dict"][key] = seed(f"state_dict.{key}", tuple(empty.shape)) * factor
        return MODELS[name].build(MODELS[name].official(checkpoint))

    return build


def released(variant: str) -> dict[str, Any]:
    """Return a released checkpoint without its weights' values and without the classifier."""
    state_dict = empty_checkpoint("faceptor", TABLES[variant])["state_dict"]
    state_dict = {key: value for key, value in state_dict.items() if "losses_module" not in key}
    return {"step": 50_000, "state_dict": state_dict, "optimizer": {"state": {}}}


@pytest.fixture(scope="module")
def full(network: Network) -> nn.Module:
    return network("faceptor-full")


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return {**goldens("faceptor"), **{f"naive.{k}": v for k, v in goldens("faceptor", "golden_naive.npz").items()}}


@pytest.fixture(scope="module")
def crops() -> Tensor:
    return (seeded_crops(112) - 0.5) / 0.5


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    return (seeded_crops(512) - mean) / std


def celeba_order() -> list[str]:
    names = [snake_case(name) for name in listed(readme("faceptor"), "rounded at 0.5, order: ", ". Gender = Male")]
    assert len(names) == 40
    return names


def by_task(raw: Mapping[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Put outputs back under the official code's task names, attributes in the reference's order."""
    given = {task: names for task, names in outputs(VARIANTS[variant]).items() if names[0].name in raw}
    tasks = {task: raw[names[0].name] for task, names in given.items() if names is not CELEBA}
    if "biattr_celeba" in given:
        tasks["biattr_celeba"] = torch.stack([raw[name] for name in celeba_order()], dim=1)
    return tasks


def assert_values(raw: Mapping[str, Tensor], variant: str, golden: Arrays, prefix: str) -> None:
    tasks = by_task(raw, variant)
    assert len(tasks) == (4 if VARIANTS[variant] == VARIANTS["base"] else 6)
    for task, value in tasks.items():
        assert_matches(value, golden[f"{prefix}{task}"])
    estimates = interpret(raw)
    for task, given in outputs(VARIANTS[variant]).items():
        if f"{prefix}{task}.years" in golden:
            assert_matches(estimates[given[0].name].value, golden[f"{prefix}{task}.years"])


def assert_maps(raw: Mapping[str, Tensor], variant: str, golden: Arrays, prefix: str) -> None:
    """Compare as many pictures as there are with the goldens of the tasks that have any."""
    compared = set()
    for task, output in by_task(raw, variant).items():
        n = len(output)
        if f"{prefix}{task}.landmark" in golden:
            assert_matches(expected_points(output), golden[f"{prefix}{task}.landmark"][:n])
            compared.add(task)
        if f"{prefix}{task}.heatmap_every16" in golden:
            assert_matches(output[:, :, ::16, ::16], golden[f"{prefix}{task}.heatmap_every16"][:n])
        if f"{prefix}{task}.every32" in golden:
            assert_matches(output[:, :, ::32, ::32].permute(0, 2, 3, 1), golden[f"{prefix}{task}.every32"][:n])
            compared.add(task)
        if f"{prefix}{task}.argmax_every16" in golden:
            same = output.argmax(dim=1)[:, ::16, ::16].numpy() == golden[f"{prefix}{task}.argmax_every16"][:n]
            assert same.mean() > 0.999  # ties
    assert {"parsing_celebam", "align_300w"} <= compared


def assert_decoder_taps(taps: Mapping[str, Tensor], golden: Arrays, prefix: str) -> None:
    """Compare the last task's way through the decoder."""
    for layer in (0, 8):
        for ours, theirs in (("cross_norm", "cross"), ("self_norm", "self"), ("ffn_norm", "ffn")):
            queries = taps[f"tasks.decoder.layers.{layer}.{ours}"].transpose(0, 1)
            assert_tap(f"{prefix}.{theirs}{layer}", queries, golden)
    assert_tap(f"{prefix}.position", taps["tasks.decoder.adapt_pos2d"], golden)
    queries = taps["tasks.decoder"]
    if list(queries.shape) != golden[f"{prefix}.queries.shape"].tolist():
        queries = queries.transpose(0, 1)
    assert_tap(f"{prefix}.queries", queries, golden)


def assert_encoder_taps(taps: Mapping[str, Tensor], maps: list[Tensor], golden: Arrays, size: int) -> None:
    assert_tap(f"backbone.{size}.conv1", taps["visual.conv1"], golden)
    assert_tap(f"backbone.{size}.ln_pre", taps["visual.ln_pre"], golden)
    for block in (0, 1, 3, 5, 7, 9, 11):
        assert_tap(f"backbone.{size}.block{block}", maps[block], golden)


def test_full_matches_the_official_code_on_crops(full: nn.Module, golden: Arrays, crops: Tensor) -> None:
    with recorded(full) as taps, torch.inference_mode():
        raw = full(crops)
    assert_values(raw, "full", golden, "full.")
    assert_encoder_taps(taps, taps["visual"], golden, 112)
    with recorded(full) as taps, torch.inference_mode():
        full(crops, frozenset({"expression"}))
    assert_decoder_taps(taps, golden, "full.affect_rafdb")


def test_full_with_wide_queries_matches_the_official_code(network: Network, golden: Arrays, crops: Tensor) -> None:
    with torch.inference_mode():
        assert_values(network("faceptor-full", wide=True)(crops), "full", golden, "wide.full.")


@pytest.mark.parametrize("wide", [False, True])
def test_layer_attention_matches_the_official_code(network: Network, golden: Arrays, crops: Tensor, wide: bool) -> None:
    layered = network("faceptor-layer-attention", wide)
    prefix = f"{'wide.' * wide}layer_attention."
    with torch.inference_mode():
        assert_values(layered(crops), "layer-attention", golden, prefix)
    if not wide:
        with recorded(layered) as taps, torch.inference_mode():
            layered(crops, frozenset({"expression"}))
        assert_decoder_taps(taps, golden, f"{prefix}affect_rafdb")


def test_base_gives_what_full_gives_in_its_tasks(network: Network, golden: Arrays, crops: Tensor) -> None:
    with torch.inference_mode():
        assert_values(network("faceptor-base")(crops), "base", golden, "full.")  # as the reference checked


def test_naive_matches_the_official_code_on_crops(network: Network, golden: Arrays, crops: Tensor) -> None:
    with torch.inference_mode():
        assert_values(network("faceptor-naive")(crops), "naive", golden, "naive.")


@pytest.mark.parametrize("variant", ["full", "naive"])
def test_embedding_matches_the_official_code(network: Network, golden: Arrays, crops: Tensor, variant: str) -> None:
    with torch.inference_mode():
        assert_matches(network(f"faceptor-{variant}-embedding")(crops), golden[f"{variant}.recog_ms1mv3"])


def test_one_picture_matches_the_official_code(network: Network, golden: Arrays, pictures: Tensor) -> None:
    with torch.inference_mode():
        raw = network("faceptor-full-dense")(pictures[:1])
    assert_maps(raw, "full", golden, "full.")
    assert interpret(raw)["parsing"].value.shape == (1, 512, 512)
    pixels = interpret(raw)["landmarks_68"].value
    assert_matches(pixels, golden["full.align_300w.landmark"][:1] * np.float32(512) - np.float32(0.5))


@pytest.mark.long  # a minute each; the one picture above, and wide queries below, go the same way
@pytest.mark.parametrize("variant", ["full", "layer-attention", "naive"])
def test_pictures_match_the_official_code(network: Network, golden: Arrays, pictures: Tensor, variant: str) -> None:
    dense, prefix = network(f"faceptor-{variant}-dense"), f"{variant.replace('-', '_')}."
    with recorded(dense) as taps, torch.inference_mode():
        raw = dense(pictures)
    assert_maps(raw, variant, golden, prefix)
    assert_encoder_taps(taps, taps["visual"], golden, 512)
    for task, output in by_task(raw, variant).items():
        if f"{prefix}{task}.heatmap.stats" in golden:
            assert_tap(f"{prefix}{task}.heatmap", output, golden)
        if f"{prefix}{task}.stats" in golden:
            assert_tap(f"{prefix}{task}", output.permute(0, 2, 3, 1), golden)
    if variant != "naive":
        with recorded(dense) as taps, torch.inference_mode():
            dense(pictures, frozenset({"landmarks_68"}))
        assert_decoder_taps(taps, golden, f"{prefix}align_300w")
        if f"{prefix}align_300w.mask_map.stats" in golden:
            assert_tap(f"{prefix}align_300w.mask_map", taps["tasks.pixels.mask_map"], golden)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "count"), [("full", 1), pytest.param("layer-attention", 1, marks=pytest.mark.long)]
)
def test_pictures_with_wide_queries_match(
    network: Network, golden: Arrays, pictures: Tensor, variant: str, count: int
) -> None:
    with torch.inference_mode():
        raw = network(f"faceptor-{variant}-dense", wide=True)(pictures[:count], frozenset({"parsing", "landmarks_68"}))
    assert_maps(raw, variant, golden, f"wide.{variant.replace('-', '_')}.")


def golden_estimates(golden: Arrays) -> dict[str, Estimate]:
    """Interpret the official code's raw outputs of Full, attributes named by the reference's own list."""
    raw = dict(zip(celeba_order(), torch.from_numpy(golden["wide.full.biattr_celeba"]).T, strict=True))
    for task in ("affect_rafdb", "affect_affectnet", "affect_ferplus", "age_utkface", "age_morph2"):
        raw[outputs(VARIANTS["full"])[task][0].name] = torch.from_numpy(golden[f"wide.full.{task}"])
    return interpret(raw)


def test_attributes_have_the_meaning_of_the_reference(golden: Arrays) -> None:
    estimates = golden_estimates(golden)
    assert estimates.keys() == {attribute.name for attribute in MODELS["faceptor-full"].attributes}
    expected = golden["wide.full.biattr_celeba.probability"]
    for position, name in enumerate(celeba_order()):
        if name != "gender":
            assert_matches(estimates[name].value, expected[:, position])
    gender = estimates["gender"].probabilities
    assert gender is not None
    assert_matches(gender[:, GENDER.classes.index("male")], expected[:, celeba_order().index("gender")])


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("affect_rafdb", "expression"),
        ("affect_affectnet", "expression_affectnet"),
        ("affect_ferplus", "expression_ferplus"),
    ],
)
def test_expressions_have_the_meaning_of_the_reference(golden: Arrays, task: str, name: str) -> None:
    words = [item.split()[1] for item in listed(readme("faceptor"), "use AffectNet's order): ", "; softmax")]
    assert len(words) == 7
    labels = [{"Happy": "happiness", "Sad": "sadness"}.get(word, word.lower()) for word in words]
    probabilities = golden_estimates(golden)[name].probabilities
    assert probabilities is not None
    for position, label in enumerate(labels):
        assert_matches(
            probabilities[:, EXPRESSION.classes.index(label)], golden[f"wide.full.{task}.probability"][:, position]
        )


def test_rafdb_labels_of_the_reference_lead_to_the_same_names() -> None:
    text = readme("faceptor")
    mapped = [int(i) for i in listed(text, "own labels 1..7 are mapped to ", ".")]
    swinface = re.search(r"RAF-DB order: (.*?)\.", readme("swinface"))
    assert swinface
    rafdb = [item.split()[1] for item in swinface[1].split(", ")]  # RAF-DB's labels 1..7 in words
    affectnet = [item.split()[1] for item in listed(text, "use AffectNet's order): ", "; softmax")]
    assert [affectnet[i] for i in mapped] == rafdb


def test_age_is_the_expectation_and_its_confidence_the_mass_nearby(golden: Arrays) -> None:
    assert_matches(golden_estimates(golden)["age"].value, golden["wide.full.age_utkface.years"])
    logits = torch.full((2, 101), -200.0)
    logits[0, 30] = 200.0
    logits[1, [0, 100]] = 200.0
    estimate = interpret({"age": logits})["age"]
    torch.testing.assert_close(estimate.value, torch.tensor([30.0, 50.0]))
    torch.testing.assert_close(estimate.confidence, torch.tensor([1.0, 0.0]))  # torn between 0 and 100: sure of neither


def test_parsing_classes_have_the_meaning_of_the_reference() -> None:
    text = readme("faceptor")
    lapa = [item.split(" ", 1)[1] for item in listed(text, "**LaPa, 11**: ", ". * There is")]
    names = {"face with ears": "skin"}
    expected = [
        names.get(n, n).replace("left", "image left").replace("right", "image right").replace(" ", "_") for n in lapa
    ]
    assert list(PARSING_LABELS["parsing_lapa"]) == expected

    celebamask = [item.split(" ", 1)[1] for item in listed(text, "**CelebAMask-HQ, 19**: ", ". Later masks")]
    sides = {"l": "image_left_", "r": "image_right_"}
    names = {"face": "skin", "ear-ring": "earring"}
    expected = []
    for name in celebamask:
        file = re.search(r"`([lr])_(ear|brow|eye)`", name)  # the data set's files call the picture's left l
        expected.append(sides[file[1]] + file[2] if file else names.get(name, name).replace(" ", "_"))
    assert list(PARSING_LABELS["parsing_celebam"]) == expected
    assert set(expected) == set(PARSING.classes)


def test_landmarks_are_as_sure_as_their_peaks() -> None:
    maps = torch.full((1, 68, 128, 128), -30.0)
    maps[:, :, 63, 31] = torch.tensor(4.0).log()  # a peak of 0.8 at column 31, row 63
    estimate = interpret({"landmarks_68": maps})["landmarks_68"]
    torch.testing.assert_close(estimate.value, torch.tensor([125.5, 253.5]).expand(1, 68, 2))
    torch.testing.assert_close(estimate.confidence, torch.tensor([0.8]))


@pytest.mark.parametrize("name", ["faceptor-full", "faceptor-naive"])
def test_only_the_wanted_tasks_are_run(network: Network, crops: Tensor, name: str) -> None:
    model, wanted = network(name), frozenset({"smiling", "eyeglasses"})
    asked: list[Mapping[str, list[int] | None]] = []
    model.get_submodule("tasks").register_forward_pre_hook(lambda module, inputs: asked.append(inputs[1]))
    with recorded(model) as taps, torch.inference_mode():
        raw, everything = model(crops, wanted), None
        heads = {tap for tap in taps if re.fullmatch(r"tasks\.heads\.\w+", tap)}
        everything = model(crops)
    assert raw.keys() == wanted
    assert asked[0] == {"biattr_celeba": [celeba_order().index("eyeglasses"), celeba_order().index("smiling")]}
    assert heads == ({"tasks.heads.biattr"} if "naive" in name else set())
    for attribute in wanted:
        torch.testing.assert_close(raw[attribute], everything[attribute], atol=2e-5, rtol=1e-5)


def test_nothing_sensitive_is_computed_when_only_the_harmless_is_wanted(full: nn.Module, crops: Tensor) -> None:
    harmless = frozenset(a.name for a in MODELS["faceptor-full"].attributes if not a.sensitive)
    decoded: list[str] = []
    handle = full.get_submodule("tasks.decoder").register_forward_pre_hook(lambda module, x: decoded.append(x[0]))
    with recorded(full) as taps, torch.inference_mode():
        raw = full(crops, harmless)
    handle.remove()
    assert raw.keys() == harmless
    assert sorted(decoded) == ["affect_affectnet", "affect_ferplus", "affect_rafdb", "biattr_celeba"]
    assert taps["tasks.value"].shape[1] <= 24  # of CelebA's forty queries, or an expression's seven


def test_nothing_wanted_runs_nothing_and_unknown_names_are_refused(full: nn.Module, crops: Tensor) -> None:
    with recorded(full) as taps, torch.inference_mode():
        assert full(crops, frozenset()) == {}
    assert "visual" not in taps
    with pytest.raises(ValueError, match="gives no race"):
        full(crops, frozenset({"race"}))


def test_estimates_do_not_depend_on_batch_neighbours(full: nn.Module, crops: Tensor) -> None:
    with torch.inference_mode():
        together, alone = full(crops), full(crops[1:])
    for name in together:
        torch.testing.assert_close(together[name][1:], alone[name], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("asked", VARIANTS)
@pytest.mark.parametrize("given", VARIANTS)
def test_another_variant_is_refused_by_name(asked: str, given: str) -> None:
    for part in ("", "-dense", "-embedding"):
        spec, other = MODELS[f"faceptor-{asked}{part}"], MODELS[f"faceptor-{given}{part}"]
        if asked == given:
            assert spec.official(released(given)).keys()
            continue
        with pytest.raises(CheckpointMismatch, match=f"Faceptor-{given.title()}.*Faceptor-{asked.title()} was asked"):
            spec.official(released(given))
        if part != "-embedding":
            with pytest.raises(CheckpointMismatch, match=f"use the models called faceptor-{given}"):
                spec.build(other.official(released(given)))


def test_training_leftovers_are_dropped() -> None:
    checkpoint = released("full")
    checkpoint["state_dict"]["module.losses_module.losses.recog_ms1mv3.classifier"] = torch.empty(5, 512)
    kept = [key for part in ("", "-dense", "-embedding") for key in MODELS[f"faceptor-full{part}"].official(checkpoint)]
    assert any(".mask_map.1.ln." in key for key in checkpoint["state_dict"])  # the norm's parameters, registered twice
    assert not any("classifier" in key or ".ln." in key or "num_batches" in key for key in kept)


def test_another_models_file_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="none of Faceptor's"):
        MODELS["faceptor-full"].official({"conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointMismatch, match="none of Faceptor's"):
        MODELS["faceptor-base-dense"].build({"conv1.weight": torch.zeros(1)})
