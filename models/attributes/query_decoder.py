"""Faceptor's transformer decoder: each task asks the encoder's tokens with queries of its own, through shared layers.

Qin et al., "Faceptor: A Generalist Model for Face Perception", ECCV 2024 (arXiv:2403.09500), Section 3.2.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from models.attributes.heads import ChannelNorm, perceptron
from models.checkpoint import shape_of
from models.spec import StateDict

Rows = list[int] | None  # the queries that are wanted; all if None

_HEADS = 8
_TEMPERATURE = 10_000.0
LAST_BLOCK = 11
EARLIER_BLOCKS = (1, 3, 5, 7, 9)  # read as well by Layer-Attention, in this order behind the last one


class DecoderLayer(nn.Module):
    """Cross-attention, then self-attention, then a perceptron, each with a residual around it and a norm behind it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ffn_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, origin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Update queries (N, Q, C) with positions `origin`, from a memory of keys and values (N, T, C)."""
        x = self.cross_norm(x + self.cross_attn(x + origin, keys, values, need_weights=False)[0])
        placed = x + origin
        x = self.self_norm(x + self.self_attn(placed, placed, x, need_weights=False)[0])
        return self.ffn_norm(x + self.linear2(self.linear1(x).relu()))


class QueryDecoder(nn.Module):
    """The memory of one level, or of six in Layer-Attention, and the layers that all tasks share."""

    def __init__(self, state_dict: StateDict, prefix: str, tasks: Iterable[str]) -> None:
        super().__init__()
        width, channels, _, _ = shape_of(state_dict, f"{prefix}input_proj.0.weight")
        hidden = shape_of(state_dict, f"{prefix}layers.0.linear1.weight")[0]
        depth = sum(key.startswith(f"{prefix}layers.") and key.endswith(".linear1.weight") for key in state_dict)
        self.blocks = (LAST_BLOCK, *EARLIER_BLOCKS) if f"{prefix}input_proj.1.weight" in state_dict else (LAST_BLOCK,)
        self.input_proj = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in self.blocks)
        self.level_embed = nn.Parameter(torch.zeros(len(self.blocks), width))
        self.adapt_pos2d = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        shapes = {task: shape_of(state_dict, f"{prefix}query_feat.{task}") for task in tasks}
        self.query_feat = nn.ParameterDict({task: torch.zeros(shape) for task, shape in shapes.items()})
        self.query_embed = nn.ParameterDict({task: torch.zeros(shape) for task, shape in shapes.items()})
        self.layers = nn.ModuleList(DecoderLayer(width, hidden) for _ in range(depth))

    def memory(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values (N, levels * HW, C) of the encoder's maps, and the last block's projection (N, C, H, W)."""
        levels = [proj(maps[block]) for block, proj in zip(self.blocks, self.input_proj, strict=True)]
        position = self.adapt_pos2d(sine_position(levels[0])).flatten(0, 1)
        values = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        return values + (position + self.level_embed[:, None]).flatten(0, 1), values, levels[0]

    def forward(self, task: str, keys: Tensor, values: Tensor) -> Tensor:
        """Return what a task's queries (N, Q, C) have read from the memory."""
        x = self.query_feat[task].expand(values.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, self.query_embed[task], keys, values)
        return x


def sine_position(grid: Tensor) -> Tensor:
    """Return sines and cosines of where the cells of a map (N, C, H, W) lie, (H, W, C): rows first, then columns."""
    _, channels, h, w = grid.shape
    half = channels // 2
    step = torch.arange(half, device=grid.device) // 2 * 2 / half
    codes = []
    for n in (h, w):
        centres = (torch.arange(n, device=grid.device, dtype=grid.dtype) + 0.5) / n
        angles = 2 * math.pi * centres[:, None] / _TEMPERATURE**step
        codes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1))
    rows, columns = codes
    return torch.cat([rows[:, None].expand(-1, w, -1), columns[None].expand(h, -1, -1)], dim=2)


class PixelDecoder(nn.Module):
    """One map for each query: its dot product with the last block's features at four times their size."""

    def __init__(self, state_dict: StateDict, prefix: str) -> None:
        super().__init__()
        width = shape_of(state_dict, f"{prefix}mask_map.1.weight")[0]
        self.mask_map = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            ChannelNorm(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.mask_embed = perceptron(state_dict, f"{prefix}mask_embed.")

    def forward(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Return logits (N, Q, 4H, 4W) of queries (N, Q, C) and what `mask_map` made of the features."""
        return torch.einsum("nqc,nchw->nqhw", self.mask_embed(queries), pixels)


class ValueTasks(nn.Module):
    """Age, attributes and expressions: one number for each query."""

    def __init__(self, state_dict: StateDict, tasks: Iterable[str]) -> None:
        super().__init__()
        self.decoder = QueryDecoder(state_dict, "tasks.decoder.", tasks)
        self.value = nn.Linear(shape_of(state_dict, "tasks.value.weight")[1], 1)

    def forward(self, maps: list[Tensor], tasks: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Return each task's logits (N, rows) of the queries that are asked for."""
        keys, values, _ = self.decoder.memory(maps)
        logits = {}
        for task, rows in tasks.items():
            queries = self.decoder(task, keys, values)
            logits[task] = self.value(queries if rows is None else queries[:, rows])[..., 0]
        return logits


class MapTasks(nn.Module):
    """Parsing and landmarks: one map for each query."""

    def __init__(self, state_dict: StateDict, tasks: Iterable[str]) -> None:
        super().__init__()
        self.decoder = QueryDecoder(state_dict, "tasks.decoder.", tasks)
        self.pixels = PixelDecoder(state_dict, "tasks.pixels.")

    def forward(self, maps: list[Tensor], tasks: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Return each task's logit maps (N, Q, H/4, W/4) of all its queries."""
        keys, values, features = self.decoder.memory(maps)
        pixels = self.pixels.mask_map(features)
        return {task: self.pixels(self.decoder(task, keys, values), pixels) for task in tasks}
