"""Small parts that the attribute models share: perceptrons, a norm over channels, the embedding head."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import shape_of
from models.spec import StateDict


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, of which the last can compute some of its outputs only."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor, rows: list[int] | None = None) -> Tensor:
        """Map (..., C) to (..., D), or to the outputs `rows` alone."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return linear_rows(self.layers[-1], x, rows)


def linear_rows(layer: nn.Module, x: Tensor, rows: list[int] | None) -> Tensor:
    """Apply a linear layer, or compute its outputs `rows` alone: (..., C) to (..., len(rows))."""
    if rows is None:
        return layer(x)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    return F.linear(x, weight[rows], bias[rows])


def perceptron(state_dict: StateDict, prefix: str, depth: int = 3) -> Perceptron:
    """Return the perceptron whose weights lie under `prefix`.

    Raises:
        CheckpointMismatch: if there is none.
    """
    shapes = [shape_of(state_dict, f"{prefix}layers.{i}.weight") for i in range(depth)]
    return Perceptron(shapes[0][1], *(out for out, _ in shapes))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W) at every position, as Segment Anything's upscaling has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, 3), self.weight.shape, self.weight, self.bias, eps=1e-6).movedim(3, 1)


def embedding_head(width: int, dimension: int) -> nn.Sequential:
    """From mean tokens (N, width) to the identity embedding (N, dimension), not normalised."""
    return nn.Sequential(
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width, eps=2e-5),
        nn.Linear(width, dimension, bias=False),
        nn.BatchNorm1d(dimension, eps=2e-5),
    )
