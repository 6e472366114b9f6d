"""PETALface against the official code, and its checkpoint reader against the wrong files."""

from functools import partial

import pytest
import torch

from models.recognition.petalface import (
    PETALFACE,
    PETALFACE_BASE,
    PETALFACE_SINGLE,
    AdaptedLinear,
    BlendedLinear,
    PETALface,
    Swin,
    with_quality,
)
from models.spec import CheckpointMismatch
from tests.models.recognition.golden import (
    assert_close,
    assert_golden,
    assert_taps,
    checkpoint,
    faces,
    golden,
    network,
    tap_names,
    taps,
)

TABLE = "petalface/state_dict_swin_iqa_lora8.tsv"
QUERY = "layers.0.blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def blended() -> PETALface:
    quality = {"params": checkpoint("petalface/state_dict_cnniqa.tsv")}
    return PETALFACE.build(PETALFACE.official(checkpoint(TABLE) | quality))  # both files, as they are read together


@pytest.mark.parametrize(
    ("spec", "name"),
    [(PETALFACE_BASE, "swin_base"), pytest.param(PETALFACE_SINGLE, "swin_lora8_single", marks=pytest.mark.long)],
    ids=["base", "single"],
)
def test_embedding_and_intermediates_are_those_of_the_official_code(spec, name):
    assert_golden(spec, network(spec, f"petalface/state_dict_{name}.tsv"), golden(f"petalface/golden_{name}.npz"))


def test_blended_embedding_and_intermediates_are_those_of_the_official_code(blended):
    stored = golden("petalface/golden_swin_iqa_lora8.npz")
    x = faces(PETALFACE, stored)
    with torch.inference_mode():
        with taps(blended, tap_names(stored)) as outputs:
            embeddings = blended.embed(x, torch.tensor([[0.3], [0.8]]))
        assert_taps(outputs, stored)
        assert_close(embeddings, stored["embedding"], float(abs(stored["embedding"]).max()), "embedding")


@pytest.mark.long
def test_blended_embedding_is_that_of_the_official_code_at_every_alpha(blended):
    stored = golden("petalface/golden_swin_iqa_lora8.npz")
    x = faces(PETALFACE, stored)
    with torch.inference_mode():
        for alphas, wanted in zip(stored["alphas"], stored["embeddings_by_alpha"], strict=True):
            embeddings = blended.embed(x, torch.from_numpy(alphas)[:, None])
            assert_close(embeddings, wanted, float(abs(wanted).max()), f"embedding at alpha {alphas}")


def test_quality_is_that_of_the_official_code(blended):
    stored = golden("petalface/golden_cnniqa.npz")
    x = faces(PETALFACE, stored)
    with torch.inference_mode():
        with taps(blended.quality, tap_names(stored)) as outputs:
            score = blended.quality(x)
        # fc3 gives one number an image, so that its spread is 0 and its value is the score itself
        assert_taps(outputs, {key: value for key, value in stored.items() if "/fc3/" not in key})
        assert_close(score, stored["score"], 1.0, "score", tolerance=1e-5)
        assert_close(blended.quality((x + 1) / 2), stored["score_01"], 1.0, "score of pixels in 0..1", tolerance=1e-5)


def test_quality_above_the_threshold_decides_the_blend(blended):
    x = torch.zeros(1, 3, 120, 120)
    with torch.inference_mode():
        usual = blended.embed(x, blended.quality(x) - 0.3)
        blended.threshold.fill_(0.8)
        shifted = blended(x)
        blended.threshold.fill_(0.5)
    torch.testing.assert_close(shifted, usual)


@pytest.mark.parametrize(
    ("alpha", "down", "up"),
    [(0.0, "trainable_lora_down", "trainable_lora_up"), (1.0, "trainable_lora_down2", "trainable_lora_up2")],
)
def test_blend_at_its_ends_is_one_adapter(alpha, down, up):
    torch.manual_seed(0)
    layer, x = BlendedLinear(12, 36, rank=4).eval(), torch.randn(5, 7, 12)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    adapter = layer.get_submodule(up)(layer.get_submodule(down)(x))
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, torch.full((5, 1, 1), alpha)), plain + adapter)


def test_fresh_adapters_change_nothing():
    x = torch.randn(5, 12)
    single, double = AdaptedLinear(12, 36, rank=4), BlendedLinear(12, 36, rank=4)
    torch.testing.assert_close(single(x), torch.nn.functional.linear(x, single.weight, single.bias))
    torch.testing.assert_close(double(x, torch.rand(5, 1)), torch.nn.functional.linear(x, double.weight, double.bias))


def test_two_adapters_without_the_quality_network_are_refused_with_what_to_do():
    adapted = {f"{QUERY}.trainable_lora_down2.weight": torch.zeros(8, 384)}
    with pytest.raises(CheckpointMismatch, match=r"not the quality network.*--weights CNNIQA"):
        PETALFACE.official(adapted)


def test_joined_weights_are_read_as_they_were_joined_with_their_threshold():
    backbone = {f"{QUERY}.trainable_lora_down2.weight": torch.ones(8, 384)}
    joined = with_quality(backbone, {"params": {"fc3.bias": torch.ones(1)}}, threshold=0.25)
    assert PETALFACE.official(joined) == joined
    assert joined["threshold"] == 0.25
    assert joined["quality.fc3.bias"] == 1


@pytest.mark.parametrize("spec", [PETALFACE_SINGLE, PETALFACE], ids=["single", "blended"])
def test_backbone_without_adapters_is_refused_where_adapters_belong(spec):
    with pytest.raises(CheckpointMismatch, match=r"no 'layers\.0\.blocks\.0\.attn\.qkv\.trainable_lora_down\.weight'"):
        spec.build({f"{QUERY}.weight": torch.zeros(1152, 384)})


def test_adapters_are_refused_where_none_belong():
    adapted = {f"{QUERY}.trainable_lora_down.weight": torch.zeros(8, 384)}
    with pytest.raises(CheckpointMismatch, match=r"1 unexpected: layers\.0\.blocks\.0\.attn\.qkv\.trainable_lora_down"):
        PETALFACE_BASE.build(adapted)


def test_masks_that_the_official_code_never_applies_are_left_out():
    kept = torch.zeros(384)
    read = PETALFACE_BASE.official({
        "layers.0.blocks.1.attn_mask": torch.zeros(16, 25, 25),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(25, 25, dtype=torch.int64),
        "norm.weight": kept,
    })  # fmt: skip
    assert read == {"norm.weight": kept}


def test_adapters_alone_are_trained_and_the_quality_network_judges_as_ever():
    with torch.device("meta"):
        networks = {PETALFACE: PETALface(rank=2), PETALFACE_SINGLE: Swin(partial(AdaptedLinear, rank=2))}
    for spec, built in networks.items():
        trained = {key for key, _ in built.named_parameters() if spec.trains(key)}
        assert trained == {key for key, _ in built.named_parameters() if "lora" in key}
    assert networks[PETALFACE].train().training
    assert not networks[PETALFACE].quality.dropout.training
