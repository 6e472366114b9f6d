"""Low-rank adapters on a frozen backbone, in pairs that are blended by the effective resolution of each face.

Hu et al., "LoRA", ICLR 2022 (arXiv:2106.09685): W x + Up Down x, with Up starting at zero, so that fresh adapters change
nothing. Narayan et al., "PETALface", WACV 2025 (arXiv:2412.07771): two adapters a layer, one for poor and one for good images,
in shares that a measure of quality decides. Here the measure is `models.resolution.ResolutionGate`, which needs the crop alone.
A convolution's adapter is a convolution of its window to `rank` channels, then one of 1x1 back.

The weights of an adapted network are those of its backbone under their own names, and the adapters beside them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import load
from models.resolution import ResolutionGate
from models.spec import CheckpointMismatch, ModelSpec, StateDict

BACKBONE = "backbone."
DOWN, UP = "lora_down", "lora_up"
SUFFIX = "-lora"

# The good adapter's share of each image in the forward that is running; None: no adapter takes part. Layers deep in a backbone
# cannot be handed it, and an attribute of the modules would be seen by other threads.
_share: ContextVar[Tensor | None] = ContextVar("share", default=None)


@contextmanager
def blend(share: Tensor) -> Iterator[None]:
    """Let adapted layers blend by `share` (N,): 0 the adapter for poor images alone, 1 the one for good images alone.

    Without it they are the backbone's own layers.
    """
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


class AdaptedConv2d(nn.Conv2d):
    """A convolution with a pair of adapters: the first `rank` channels of `lora_down` serve poor images, the rest good ones."""

    def __init__(self, layer: nn.Conv2d, rank: int) -> None:
        window: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "padding_mode": layer.padding_mode,
        }
        super().__init__(layer.in_channels, layer.out_channels, **window)
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_down = nn.Conv2d(layer.in_channels, 2 * rank, bias=False, **window)
        self.lora_up = nn.Conv2d(2 * rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        share = _share.get()
        if share is None:
            return super().forward(x)
        return super().forward(x) + self.lora_up(_weighed(self.lora_down(x), share, channel=1))


class AdaptedLinear(nn.Linear):
    """A linear layer with such a pair, (..., inputs) to (..., outputs); the rows of one image lie together."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_down = nn.Linear(layer.in_features, 2 * rank, bias=False)
        self.lora_up = nn.Linear(2 * rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Tensor) -> Tensor:
        share = _share.get()
        if share is None:
            return super().forward(x)
        return super().forward(x) + self.lora_up(_weighed(self.lora_down(x), share, channel=x.dim() - 1))


def _weighed(x: Tensor, share: Tensor, channel: int) -> Tensor:
    """Weigh the halves of a dimension by the shares of both adapters. x may have several rows for an image (its windows)."""
    weights = torch.stack([1 - share, share], dim=1).to(x.dtype).repeat_interleave(x.shape[channel] // 2, dim=1)
    if x.shape[0] != weights.shape[0]:
        weights = weights.repeat_interleave(x.shape[0] // weights.shape[0], dim=0)
    between, after = channel - 1, x.dim() - 1 - channel
    return x * weights.reshape(weights.shape[0], *[1] * between, weights.shape[1], *[1] * after)


class Adapted(nn.Module):
    """A frozen backbone with adapters in its convolutions and linear layers: the backbone's inputs to its embeddings.

    Left as they are: grouped convolutions, which have few weights, and layers of a derived class, whose owner may use their
    weights without calling them (as nn.MultiheadAttention does).
    """

    def __init__(self, backbone: nn.Module, rank: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.gate = ResolutionGate().requires_grad_(False)
        for module in list(backbone.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Conv2d and child.groups == 1:
                    setattr(module, name, AdaptedConv2d(child, rank))
                elif type(child) is nn.Linear:
                    setattr(module, name, AdaptedLinear(child, rank))

    def forward(self, x: Tensor) -> Tensor:
        with blend(self.gate(x)):
            return self.backbone(x)


def is_adapter(key: str) -> bool:
    """Whether a parameter or a key of a state dict belongs to an adapter."""
    return f".{DOWN}." in key or f".{UP}." in key


def adapted(base: ModelSpec) -> ModelSpec:
    """The entry of the model table for a backbone with adapters: `build` reads their rank from the weights."""
    return replace(
        base,
        name=base.name + SUFFIX,
        title=f"{base.title}, with pairs of LoRA adapters blended by effective resolution",
        licence=f"{base.licence} (backbone); adapters: that of what they were trained on",
        source=f"a training of your own: visage train recognition --backbone {base.name} --lora RANK",
        paper="arXiv:2412.07771",
        build=partial(build, base=base),
        bundled=None,
        bfloat16=(),  # that it loses nothing was not shown for adapters
        official=dict,
        notes=f"Backbone: {base.name} ({base.source}).",
    )


def build(state_dict: StateDict, base: ModelSpec) -> Adapted:
    """Build `base` with adapters of the rank that the weights have.

    Raises CheckpointMismatch, naming the keys, if they belong to another network or have no adapters.
    """
    ranks = sorted({value.shape[0] // 2 for key, value in state_dict.items() if key.endswith(f".{DOWN}.weight")})
    if len(ranks) != 1:
        found = f"adapters of the ranks {ranks}" if ranks else "no adapters"
        raise CheckpointMismatch(f"The weights have {found}; {base.name}{SUFFIX} has one rank in all its layers.")
    own = {key.removeprefix(BACKBONE): value for key, value in state_dict.items() if key.startswith(BACKBONE)}
    backbone = base.build({key: value for key, value in own.items() if not is_adapter(key)})
    return load(Adapted(backbone, ranks[0]), state_dict, base.name + SUFFIX)
