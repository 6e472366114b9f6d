"""RestoreFormer and RestoreFormer++ against outputs of the official code, and what a person may rely on beside them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.restoration.restoreformer import (
    HQ_DICTIONARY,
    RESTOREFORMER,
    RESTOREFORMER_PLUS_PLUS,
    RESTORER,
    RESTORER_PLUS_PLUS,
    ROHQD,
    Architecture,
    RestoreFormer,
    Variant,
    build,
    official,
)
from models.restoration.vq_autoencoder import Quantised, VectorQuantiser, perplexity
from models.spec import CheckpointMismatch
from tests.models.restoration.taps import assert_output, assert_same, stages, tapped
from tests.reference import seeded, shared

V1 = ("restoreformer", "state_dict.tsv", "golden.npz", RESTORER)
PLUS_PLUS = ("restoreformerpp", "state_dict.tsv", "golden.npz", RESTORER_PLUS_PLUS)
V1_DICTIONARY = ("restoreformer", "state_dict_dictionary.tsv", "golden_dictionary.npz", HQ_DICTIONARY)
PLUS_PLUS_DICTIONARY = ("restoreformerpp", "state_dict_dictionary.tsv", "golden_dictionary.npz", ROHQD)
SMALL = Architecture(widths=(32, 64, 64), blocks=1, latent=32, codes=64)


def small(variant: Variant) -> RestoreFormer:
    torch.manual_seed(0)
    return RestoreFormer(SMALL, variant).eval().requires_grad_(False)


def output_of(inputs: Any, output: Any) -> Tensor:
    return output.vectors if isinstance(output, Quantised) else output


def assert_official_distances(network: RestoreFormer, latent: Tensor, golden: Any) -> None:
    """How far the nearest code is everywhere, and how much farther the second nearest: codes are chosen by nothing else."""
    with torch.inference_mode():
        best = network.quantize.distances(latent).flatten(0, 2).sort(dim=1).values
    np.testing.assert_allclose(best[:, 0].numpy(), golden["distance_best"], rtol=1e-5)
    margins = best[:, 1] - best[:, 0]
    assert margins.min().item() == pytest.approx(golden["margin_min"], abs=1e-4)
    assert margins.median().item() == pytest.approx(golden["margin_median"], abs=1e-2)


@pytest.mark.parametrize(
    "case",
    [
        V1,
        PLUS_PLUS,
        pytest.param(V1_DICTIONARY, marks=pytest.mark.long),
        pytest.param(PLUS_PLUS_DICTIONARY, marks=pytest.mark.long),
    ],
    ids=lambda case: case[3].title,
)
def test_official_weights_give_every_official_stage_distance_code_and_output(
    case: tuple[str, str, str, Variant],
) -> None:
    folder, table, file, variant = case
    golden = np.load(shared(f"reference/{folder}/{file}"))
    network = build(seeded().seeded_state_dict(shared(f"reference/{folder}/{table}")), variant)
    latents: list[Tensor] = []
    network.quant_conv.register_forward_hook(lambda module, inputs, output: latents.append(output))
    face = seeded().seeded_image("golden-0", 512) * 2 - 1
    expected = stages(golden)
    with torch.inference_mode(), tapped(network, {name: (name, output_of) for name in expected}) as seen:
        quantised, features = network.encode(face)
        output = network.decode(quantised.vectors, features)
    assert len(expected) >= 58
    for name in expected:
        assert_same(seen[name], expected[name], name)
    np.testing.assert_array_equal(quantised.indices.flatten().numpy(), golden["indices"])
    assert quantised.loss.item() == pytest.approx(golden["quant_loss"], rel=1e-5)
    assert perplexity(quantised.indices, 1024).item() == pytest.approx(golden["perplexity"], rel=1e-5)
    assert_official_distances(network, latents[0], golden)
    assert_output(output, golden)


@pytest.mark.parametrize("spec", [RESTOREFORMER, RESTOREFORMER_PLUS_PLUS], ids=lambda spec: spec.name)
def test_released_checkpoint_loads_without_its_losses_and_optimiser(spec: Any) -> None:
    tensors = small(RESTORER if spec is RESTOREFORMER else RESTORER_PLUS_PLUS).state_dict()
    released = {f"vqvae.{key}": value for key, value in tensors.items()}
    released["vqvae.quantize.utility_counter"] = torch.zeros(64)
    released["loss.discriminator.main.0.weight"] = torch.zeros(4)
    network = spec.build(spec.official({"epoch": 3, "optimizer_states": [{}], "state_dict": released}))
    assert network.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in network.state_dict().items())
    assert network.architecture == SMALL


@pytest.mark.parametrize("nesting", ["params_ema", "params"])
def test_repackaged_checkpoint_loads(nesting: str) -> None:
    tensors = small(RESTORER).state_dict()
    assert build(official({nesting: tensors}), RESTORER).architecture == SMALL


@pytest.mark.parametrize(
    ("held", "wanted", "named"),
    [
        (RESTORER, RESTORER_PLUS_PLUS, r"missing: decoder\.up\.1\.attn\.0\.k\.bias"),
        (RESTORER_PLUS_PLUS, RESTORER, r"unexpected: decoder\.up\.1\.attn\.0\.k\.bias"),
    ],
    ids=["v1 file in ++", "++ file in v1"],
)
def test_the_other_variant_is_refused(held: Variant, wanted: Variant, named: str) -> None:
    with pytest.raises(CheckpointMismatch, match=named):
        build(small(held).state_dict(), wanted)


def test_another_network_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(CheckpointMismatch, match=r"RestoreFormer: 'quantize\.embedding\.weight' is missing"):
        build({"conv1.weight": torch.zeros(3)}, RESTORER)


def test_impossible_widths_are_refused() -> None:
    tensors = {**small(RESTORER).state_dict(), "encoder.down.1.block.0.conv1.weight": torch.zeros(40, 32, 3, 3)}
    with pytest.raises(CheckpointMismatch, match="multiple of 32"):
        build(tensors, RESTORER)


@pytest.mark.parametrize("variant", [RESTORER, RESTORER_PLUS_PLUS, HQ_DICTIONARY, ROHQD], ids=lambda v: v.title)
def test_restoration_does_not_depend_on_batch_neighbours(variant: Variant) -> None:
    network = small(
        variant
    ).double()  # in float32, processors without AVX-512 round a batch and a single face differently
    faces = (torch.cat([seeded().seeded_image(f"face-{i}", 64) for i in range(3)]) * 2 - 1).double()
    together = network(faces)
    alone = torch.cat([network(face[None]) for face in faces])
    assert together.shape == faces.shape
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_only_a_restorer_lets_the_degraded_face_ask() -> None:
    faces = torch.rand(2, 3, 64, 64) * 2 - 1
    for variant, asks in [(RESTORER, True), (RESTORER_PLUS_PLUS, True), (HQ_DICTIONARY, False)]:
        network = small(variant)
        quantised, features = network.encode(faces[:1])
        _, others = network.encode(faces[1:])
        same = torch.equal(network.decode(quantised.vectors, features), network.decode(quantised.vectors, others))
        assert same is not asks, variant.title


def test_a_size_that_the_levels_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        small(RESTORER)(torch.zeros(1, 3, 66, 64))


def test_gradients_pass_straight_through_the_codebook() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(codes=16, channels=4)
    latent = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantised = quantiser(latent)
    quantised.vectors.sum().backward()
    torch.testing.assert_close(latent.grad, torch.ones_like(latent))
    torch.testing.assert_close(quantised.vectors, quantiser.embedding(quantised.indices).permute(0, 3, 1, 2))


def test_codebook_loss_moves_entries_and_latents_towards_each_other() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(codes=16, channels=4)
    latent = torch.randn(2, 4, 3, 3, requires_grad=True)
    before = quantiser(latent)
    before.loss.backward()
    with torch.no_grad():
        latent -= 0.1 * latent.grad  # type: ignore[arg-type]
        quantiser.embedding.weight -= 0.1 * quantiser.embedding.weight.grad  # type: ignore[arg-type]
    assert quantiser(latent).loss < before.loss


def test_perplexity_counts_the_entries_in_use() -> None:
    assert perplexity(torch.arange(8), 32).item() == pytest.approx(8)
    assert perplexity(torch.full((8,), 5), 32).item() == pytest.approx(1)
