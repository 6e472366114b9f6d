"""CLIP's vision transformer as FaRL and Faceptor use it: every block's patch tokens, at any picture size.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (arXiv:2103.00020);
Zheng et al., "General Facial Representation Learning in a Visual-Linguistic Manner", CVPR 2022 (arXiv:2112.03109).
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import shape_of
from models.spec import StateDict

_HEAD_WIDTH = 64


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Self-attention and a perceptron, each with a norm before and a residual around it: tokens (N, T, C) to the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // _HEAD_WIDTH, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), gelu=QuickGELU(), c_proj=nn.Linear(hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """The encoder: a class token, which nobody reads, and one token for each patch."""

    def __init__(self, state_dict: StateDict, prefix: str) -> None:
        super().__init__()
        width, _, patch, _ = shape_of(state_dict, f"{prefix}conv1.weight")
        hidden = shape_of(state_dict, f"{prefix}resblocks.0.mlp.c_fc.weight")[0]
        block = re.compile(re.escape(prefix) + r"resblocks\.(\d+)\.")
        depth = len({m[1] for key in state_dict if (m := block.match(key))})
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(shape_of(state_dict, f"{prefix}positional_embedding")))
        self.ln_pre = nn.LayerNorm(width)
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the patch tokens of normalised pictures (N, 3, H, W) after every block, as maps (N, C, H/16, W/16)."""
        x = self.conv1(x)
        grid = x.shape[2:]
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1) + self.position(*grid))
        maps = []
        for block in self.resblocks:
            x = block(x)
            maps.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
        return maps

    def position(self, h: int, w: int) -> Tensor:
        """Return the position code (1 + h * w, C): the learned grid, resized bicubically, behind the class token's."""
        first, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        side = round(len(grid) ** 0.5)
        grid = grid.T.unflatten(1, (side, side))[None]
        resized = F.interpolate(grid, (h, w), mode="bicubic", align_corners=False)
        return torch.cat([first, resized[0].flatten(1).T])
