"""The parts of a vector-quantised auto-encoder for faces: encoder, codebook, decoder with self or cross attention.

Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021 (arXiv:2012.09841), as used by
RestoreFormer and RestoreFormer++ (models.restoration.restoreformer). Attributes are named as in the released checkpoints.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # groups of every normalisation, whatever the width
COMMITMENT = 0.25  # weight of the second half of the codebook loss


def normalisation(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut. Input (N, C, H, W), output (N, D, H, W)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = normalisation(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = normalisation(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Multi-head attention over positions: keys and values from `x`, queries from `query`, or from `x` itself.

    Both (N, C, H, W), output the same, added to `x` (RestoreFormer, Section 3.2). A head owns consecutive channels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} attention heads")
        self.heads = heads
        self.norm1 = normalisation(channels)
        self.norm2 = normalisation(channels)  # of the query; pure self-attention carries it unused
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        q = self.q(h if query is None else self.norm2(query))
        attended = F.scaled_dot_product_attention(self._tokens(q), self._tokens(self.k(h)), self._tokens(self.v(h)))
        return x + self.proj_out(attended.transpose(2, 3).reshape(x.shape))

    def _tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)


class Downsample(nn.Module):
    """Halve the resolution. The padding lies right and below only, so the stride keeps to even pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where `attends`; the first block changes the width."""

    def __init__(self, channels: int, out_channels: int, blocks: int, heads: int, attends: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(Attention(out_channels, heads) for _ in range(blocks if attends else 0))

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x, query)
        return x


class Middle(nn.Module):
    """Two residual blocks around an attention block, at the lowest resolution."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = Attention(channels, heads)
        self.block_2 = ResidualBlock(channels, channels)


class Features(NamedTuple):
    """What the encoder saw of a degraded face: the queries of the decoder's cross attention.

    `middle` (N, C, h, w) is for the decoder's middle; `levels[i]` for decoder level i (the lowest resolution last).
    """

    middle: Tensor
    levels: dict[int, Tensor]


class Encoder(nn.Module):
    """Face (N, 3, H, W) to latent (N, latent, h, w), h = H / 2^(levels - 1), and the features of the levels in `keep`.

    `widths` are the channels per level; attention runs at the lowest resolution only.
    """

    def __init__(self, widths: Sequence[int], blocks: int, latent: int, heads: int, keep: Sequence[int]) -> None:
        super().__init__()
        self.keep = tuple(keep)
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        lowest = len(widths) - 1
        for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
            level = Level(before, width, blocks, heads, attends=i == lowest)
            if i < lowest:
                level.add_module("downsample", Downsample(width))
            self.down.append(level)
        self.mid = Middle(widths[-1], heads)
        self.norm_out = normalisation(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        kept = {}
        lowest = len(self.down) - 1
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x)
            if i < lowest:
                if i in self.keep:
                    kept[i] = x
                x = level.get_submodule("downsample")(x)
        x = self.mid.block_1(x)
        kept[lowest] = x  # the lowest level's query is taken here, one block later than the others'
        x = self.mid.block_2(self.mid.attn_1(x))
        return self.conv_out(F.silu(self.norm_out(x))), Features(x, kept)


class Decoder(nn.Module):
    """Latent (N, latent, h, w) to face (N, 3, H, W), unbounded.

    With `features`, every attention block asks with the encoder's features (cross attention) what the stream, which comes
    from the codebook, knows; without, it is self-attention. `attends` names the levels with attention beside the middle.
    """

    def __init__(self, widths: Sequence[int], blocks: int, latent: int, heads: int, attends: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], heads)
        self.up = nn.ModuleList()
        for i, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            level = Level(before, width, blocks, heads, attends=i in attends)
            if i > 0:
                level.add_module("upsample", Upsample(width))
            self.up.append(level)
        self.norm_out = normalisation(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor, features: Features | None = None) -> Tensor:
        middle, levels = features or (None, {})
        x = self.mid.block_1(self.conv_in(x))
        x = self.mid.block_2(self.mid.attn_1(x, middle))
        for i in reversed(range(len(self.up))):
            x = self.up[i](x, levels.get(i))
            if i > 0:
                x = self.up[i].get_submodule("upsample")(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantised(NamedTuple):
    """Codebook entries in the place of a latent.

    `vectors` (N, C, h, w): gradients pass straight through to the latent; `indices` (N, h, w) int64; `loss` (): the codebook's.
    """

    vectors: Tensor
    indices: Tensor
    loss: Tensor


class VectorQuantiser(nn.Module):
    """Replace every position of a latent (N, C, h, w) by the nearest of `codes` learned vectors (squared Euclidean distance).

    The first entry wins a tie. Loss: mean |sg(e) - z|^2 + 0.25 mean |e - sg(z)|^2 (Taming Transformers, eq. 4, with the
    weight on the term that the released code puts it on).
    """

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, latent: Tensor) -> Quantised:
        indices = self.distances(latent).argmin(dim=-1)
        vectors = self.embedding(indices).permute(0, 3, 1, 2)
        loss = F.mse_loss(latent, vectors.detach()) + COMMITMENT * F.mse_loss(vectors, latent.detach())
        return Quantised(latent + (vectors - latent).detach(), indices, loss)

    def distances(self, latent: Tensor) -> Tensor:
        """Squared distances (N, h, w, codes) of every position to every entry."""
        z, entries = latent.permute(0, 2, 3, 1), self.embedding.weight
        return (z * z).sum(dim=-1, keepdim=True) + (entries * entries).sum(dim=1) - 2 * z @ entries.T


def perplexity(indices: Tensor, codes: int) -> Tensor:
    """How many codebook entries are in effective use: the exponential of the entropy of `indices`, 1 .. `codes`."""
    share = torch.bincount(indices.flatten(), minlength=codes) / indices.numel()
    return torch.exp(-(share * torch.log(share + 1e-10)).sum())
