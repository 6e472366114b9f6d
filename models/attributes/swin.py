"""Swin Transformer stages, as the backbones of SwinFace and FaceXFormer.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 (arXiv:2103.14030).
Tokens stay on their grid, (N, H, W, C), all the way through. Depths, widths, heads and window are read from the weights.
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import shape_of
from models.spec import StateDict

_MASKED = -100.0  # added to the scores of tokens that only the cyclic shift made neighbours


class WindowAttention(nn.Module):
    """Self-attention inside windows with a relative position bias (Section 3.2, eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index(window), persistent=False)

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """Attend within the windows of a grid (N, H, W, C) that is rolled back by `shift` tokens and then forth again.

        H and W are multiples of the window.
        """
        n, h, w, c = x.shape
        rows, columns = h // self.window, w // self.window
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        split = (n, rows, self.window, columns, self.window, 3, self.heads, c // self.heads)
        qkv = self.qkv(x).view(split).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, n, rows * columns * self.heads, self.window**2, c // self.heads)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias.expand(rows * columns, -1, -1, -1)
        if shift:
            bias = bias + _shift_mask(h, w, self.window, shift, x.device)[:, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(0, 1).to(q.dtype))
        x = x.view(n, rows, columns, self.heads, self.window, self.window, -1).permute(0, 1, 4, 2, 5, 3, 6)
        x = self.proj(x.reshape(n, h, w, c))
        return x.roll((shift, shift), dims=(1, 2)) if shift else x


def _relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for every query and key of a window, (window², window²)."""
    positions = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    dy, dx = (positions[:, None] - positions[None, :] + window - 1).unbind(dim=2)
    return dy * (2 * window - 1) + dx


def _shift_mask(h: int, w: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return (windows, window², window²): 0 between tokens of one region of the rolled grid, else -100 (Section 3.2)."""

    def region(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - window).int() + (place >= length - shift).int()

    regions = 3 * region(h)[:, None] + region(w)
    windows = regions.view(h // window, window, w // window, window).transpose(1, 2).reshape(-1, window**2)
    return (windows[:, :, None] != windows[:, None, :]).float() * _MASKED


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each with a norm before and a residual around it (eq. 3)."""

    def __init__(self, width: int, heads: int, window: int, hidden: int, shifted: bool) -> None:
        super().__init__()
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, H, W, C) to the same shape. A grid that one window covers isn't shifted."""
        shift = self.shift if min(x.shape[1:3]) > self.attn.window else 0
        x = x + self.attn(self.norm1(x), shift)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Join 2x2 neighbours: half the grid, twice the width (Section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, C) to (N, H/2, W/2, 2C)."""
        columns_then_rows = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(columns_then_rows, dim=3)))


class SwinLayer(nn.Module):
    """A stage: blocks with every other one shifted, then a merger (none in the last stage)."""

    def __init__(self, width: int, depth: int, heads: int, window: int, hidden: int, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(SwinBlock(width, heads, window, hidden, i % 2 == 1) for i in range(depth)))
        self.downsample = PatchMerging(width) if merge else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (N, H, W, C) to those before the merger and after it."""
        x = self.blocks(x)
        return x, self.downsample(x)


class PatchEmbedding(nn.Module):
    """Cut the picture into square patches, one normalised token each: (N, 3, H, W) to (N, H/patch, W/patch, C)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def patch_embedding(state_dict: StateDict, prefix: str) -> PatchEmbedding:
    """Return the embedding whose weights lie under `prefix`.

    Raises:
        CheckpointMismatch: if there is none.
    """
    width, _, patch, _ = shape_of(state_dict, f"{prefix}proj.weight")
    return PatchEmbedding(width, patch)


def swin_layers(state_dict: StateDict, prefix: str) -> nn.ModuleList:
    """Return the stages whose weights lie under `prefix` (`layers.0.blocks.0.norm1.weight`, ...).

    Raises:
        CheckpointMismatch: if there are none.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.blocks\.(\d+)\.norm1\.weight")
    blocks = sorted({(int(m[1]), int(m[2])) for key in state_dict if (m := pattern.fullmatch(key))})
    depths = [sum(layer == i for layer, _ in blocks) for i in range(1 + max((layer for layer, _ in blocks), default=0))]
    layers = []
    for i, depth in enumerate(depths):
        table, heads = shape_of(state_dict, f"{prefix}{i}.blocks.0.attn.relative_position_bias_table")
        hidden, width = shape_of(state_dict, f"{prefix}{i}.blocks.0.mlp.fc1.weight")
        window = (round(table**0.5) + 1) // 2
        layers.append(SwinLayer(width, depth, heads, window, hidden, merge=i + 1 < len(depths)))
    return nn.ModuleList(layers)
