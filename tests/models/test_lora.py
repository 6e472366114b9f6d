"""Adapters on a frozen backbone: fresh ones change nothing, trained ones are low-rank updates, blended by resolution."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lora import Adapted, AdaptedConv2d, AdaptedLinear, adapted, blend, is_adapter
from models.recognition.dlib_resnet import DLIB_RESNET, DlibResNet
from models.recognition.petalface import PETALFACE_BASE
from models.recognition.sface import MobileFaceNet
from models.spec import CheckpointMismatch
from models.table import MODELS

RANK = 3


def network(backbone: Callable[[], nn.Module] = DlibResNet, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return backbone().eval()


def trained(module: nn.Module) -> nn.Module:
    """The module with adapters and a gate that are not fresh any more."""
    torch.manual_seed(1)
    with torch.no_grad():
        for key, value in module.named_parameters():
            if is_adapter(f".{key}") or "gate" in key:
                value.normal_(std=0.1)
    return module


def faces(count: int, size: int = 150) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("backbone", "size"), [(DlibResNet, 150), (MobileFaceNet, 112)], ids=["dlib", "mobilefacenet"])
def test_fresh_adapters_give_exactly_the_backbone_s_embeddings(backbone: Callable[[], nn.Module], size: int) -> None:
    plain, x = network(backbone), faces(2, size)
    fresh = Adapted(network(backbone), RANK)
    with torch.inference_mode():
        assert torch.equal(fresh(x), plain(x))


def test_outside_of_a_blend_trained_adapters_take_no_part() -> None:
    plain, x = network(), faces(2)
    module = trained(Adapted(network(), RANK))
    assert isinstance(module.backbone, nn.Module)
    with torch.inference_mode():
        assert not torch.equal(module(x), plain(x))
        assert torch.equal(module.backbone(x), plain(x))


def test_adapters_are_in_every_convolution_and_linear_layer_of_the_backbone() -> None:
    module = Adapted(network(), RANK)
    layers = [layer for layer in module.modules() if isinstance(layer, AdaptedConv2d | AdaptedLinear)]
    assert len(layers) == 30  # 29 convolutions and the last layer
    assert all(layer.lora_down.weight.shape[0] == 2 * RANK for layer in layers)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_convolution_equals_the_one_with_its_adapters_merged_in(share: float) -> None:
    layer = trained(AdaptedConv2d(nn.Conv2d(4, 6, 3, stride=2, padding=1), RANK))
    assert isinstance(layer, AdaptedConv2d)
    weights = torch.tensor([1 - share] * RANK + [share] * RANK)
    update = torch.einsum("or,r,rihw->oihw", layer.lora_up.weight[:, :, 0, 0], weights, layer.lora_down.weight)
    x = torch.randn(2, 4, 9, 9)
    merged = F.conv2d(x, layer.weight + update, layer.bias, stride=2, padding=1)
    with blend(torch.full((2,), share)):
        torch.testing.assert_close(layer(x), merged)


def test_linear_layer_blends_each_image_s_windows_by_that_image_s_share() -> None:
    layer = trained(AdaptedLinear(nn.Linear(5, 7), RANK))
    assert isinstance(layer, AdaptedLinear)
    shares = torch.tensor([0.2, 0.9])
    x = torch.randn(6, 4, 5)  # three windows of four tokens for each of two images
    with blend(shares):
        found = layer(x)
    for row in range(6):
        share = float(shares[row // 3])
        weights = torch.tensor([1 - share] * RANK + [share] * RANK)
        update = layer.lora_up.weight @ (weights[:, None] * layer.lora_down.weight)
        torch.testing.assert_close(found[row], F.linear(x[row], layer.weight + update, layer.bias))


def test_only_adapters_get_gradients() -> None:
    module = Adapted(network(), RANK)
    for key, value in module.named_parameters():
        value.requires_grad_(is_adapter(key))
    module(faces(2)).square().sum().backward()
    got = {key for key, value in module.named_parameters() if value.grad is not None}
    assert got == {key for key, _ in module.named_parameters() if is_adapter(key)}
    assert len(got) == 60


def test_blend_of_one_face_does_not_depend_on_its_neighbours() -> None:
    module, x = trained(Adapted(network(), RANK)), faces(3)
    x[1] = F.interpolate(F.interpolate(x[1:2], (12, 12)), (150, 150), mode="bilinear")[0]
    with torch.inference_mode():
        torch.testing.assert_close(module(x)[1:2], module(x[1:2]), rtol=1e-4, atol=1e-5)


def test_weights_tell_the_rank_and_bring_the_embeddings_back() -> None:
    spec, module, x = adapted(DLIB_RESNET), trained(Adapted(network(), RANK)), faces(2)
    state = module.state_dict()
    assert {key.removeprefix("backbone.") for key in state if not is_adapter(key) and "gate" not in key} == set(
        network().state_dict()
    )
    with torch.inference_mode():
        assert torch.equal(spec.build(state)(x), module(x))


def test_weights_without_adapters_or_of_two_ranks_are_refused() -> None:
    spec = adapted(DLIB_RESNET)
    with pytest.raises(CheckpointMismatch, match="no adapters"):
        spec.build(network().state_dict())
    state = Adapted(network(), RANK).state_dict()
    state["backbone.fc.lora_down.weight"] = torch.zeros(2, 256)
    with pytest.raises(CheckpointMismatch, match=r"ranks \[1, 3\]"):
        spec.build(state)


def test_adapted_backbone_differs_from_it_in_name_weights_and_nothing_that_decides_the_input() -> None:
    base, spec = MODELS["petalface-base"], MODELS["petalface-base-lora"]
    assert base is PETALFACE_BASE
    assert (spec.preprocess, spec.dimension, spec.mirror, spec.role) == (
        base.preprocess,
        base.dimension,
        base.mirror,
        base.role,
    )
    assert spec.fingerprint != base.fingerprint
