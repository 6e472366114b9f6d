"""PETALface: a Swin transformer adapted to low resolution by two low-rank adapters, blended by image quality.

Narayan, Nair, Xu, Chellappa, Patel, "PETALface: Parameter Efficient Transfer Learning for Low-resolution Face Recognition",
WACV 2025 (arXiv:2412.07771); Swin: Liu et al., ICCV 2021 (arXiv:2103.14030); adapters: Hu et al., "LoRA", ICLR 2022
(arXiv:2106.09685). Released checkpoints: Hugging Face kartiknarayan/PETALface (code MIT; weights: no licence stated).
The quality network is pyiqa's CNNIQA (Kang et al., CVPR 2014), whose released weights are for non-commercial use only.

The released backbones were trained with a Swin whose shifted windows are not masked: tokens that wrap round the border see
each other. This network does the same; a masked Swin would give other embeddings. Stochastic depth is left out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load, shape_of, unwrap
from models.spec import CheckpointMismatch, Color, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112

WINDOW = 5  # tokens on a side


class AdaptedLinear(nn.Linear):
    """A linear layer with a low-rank adapter beside it: W x + b + Up Down x. (..., inputs) to (..., outputs).

    A fresh adapter changes nothing, as in LoRA (the authors' code starts it with noise instead).
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.trainable_lora_down = nn.Linear(inputs, rank, bias=False)
        self.trainable_lora_up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.trainable_lora_up.weight)
        self.lora_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora_dropout(self.trainable_lora_up(self.trainable_lora_down(x)))


class BlendedLinear(nn.Linear):
    """A linear layer with two low-rank adapters, blended by image quality (arXiv:2412.07771).

    W x + b + (1 - alpha) Up Down x + alpha Up2 Down2 x: the second adapter serves the better images.
    x (..., inputs) to (..., outputs); `alpha` broadcasts against x. Fresh adapters change nothing.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.trainable_lora_down = nn.Linear(inputs, rank, bias=False)
        self.trainable_lora_up = nn.Linear(rank, outputs, bias=False)
        self.trainable_lora_down2 = nn.Linear(inputs, rank, bias=False)
        self.trainable_lora_up2 = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.trainable_lora_up.weight)
        nn.init.zeros_(self.trainable_lora_up2.weight)
        self.lora_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:  # type: ignore[override]  # no blend without its share
        poor = self.trainable_lora_up((1 - alpha) * self.trainable_lora_down(x))
        good = self.trainable_lora_up2(alpha * self.trainable_lora_down2(x))
        return super().forward(x) + self.lora_dropout(poor) + self.lora_dropout(good)


Projection = Callable[[int, int], nn.Module]  # makes the layer that gives queries, keys and values


def windows(x: Tensor) -> Tensor:
    """Cut maps (N, H, W, C) into windows (N * H / 5 * W / 5, 25, C), the windows of one image together."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, channels)


def joined(x: Tensor, grid: int) -> Tensor:
    """Lay windows together again: the inverse of `windows` for maps of `grid` x `grid`."""
    channels, count = x.shape[-1], grid // WINDOW
    x = x.reshape(-1, count, count, WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(-1, grid, grid, channels)


def relative_positions() -> Tensor:
    """For each query and key of a window (25, 25), the row of the bias table: (dy + 4) * 9 + (dx + 4), query minus key."""
    y, x = torch.arange(WINDOW * WINDOW) // WINDOW, torch.arange(WINDOW * WINDOW) % WINDOW
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + WINDOW - 1) * (2 * WINDOW - 1) + dx + WINDOW - 1


class WindowAttention(nn.Module):
    """Self-attention inside windows (M, 25, C) with a learned bias for each relative position (arXiv:2103.14030, eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, projection: Projection) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = projection(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(), persistent=False)

    def forward(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        count, tokens, channels = x.shape
        qkv = self.qkv(x) if alpha is None else self.qkv(x, alpha)
        q, k, v = qkv.reshape(count, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.proj(out.transpose(1, 2).reshape(count, tokens, channels))


class Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention, then an MLP, each beside the identity, on tokens (N, grid * grid, C).

    Shifted blocks roll the map, so that their windows straddle those of the block before; nothing masks what wraps round.
    """

    def __init__(self, channels: int, heads: int, grid: int, shift: int, projection: Projection) -> None:
        super().__init__()
        self.grid, self.shift = grid, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, projection)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        n, tokens, channels = x.shape
        cut = windows(self.norm1(x).reshape(n, self.grid, self.grid, channels).roll((-self.shift,) * 2, dims=(1, 2)))
        if alpha is not None:  # one number an image, wanted by each of its windows
            alpha = alpha[:, None].expand(n, cut.shape[0] // n, 1).reshape(-1, 1, 1)
        seen = joined(self.attn(cut, alpha), self.grid).roll((self.shift,) * 2, dims=(1, 2))
        x = x + seen.reshape(n, tokens, channels)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Join each 2x2 tokens into one of double width: (N, grid * grid, C) to (N, grid * grid / 4, 2C)."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.grid, self.grid, x.shape[-1])
        corners = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, dim=-1).flatten(1, 2)))


class Stage(nn.Module):
    """`depth` blocks at one resolution, every second one shifted unless the map is a single window; then merging."""

    def __init__(self, channels: int, heads: int, grid: int, depth: int, merges: bool, projection: Projection) -> None:
        super().__init__()
        shift = WINDOW // 2 if grid > WINDOW else 0
        self.blocks = nn.ModuleList(
            Block(channels, heads, grid, shift if index % 2 else 0, projection) for index in range(depth)
        )
        self.downsample = PatchMerging(channels, grid) if merges else nn.Identity()

    def forward(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, alpha)
        return self.downsample(x)


class PatchEmbed(nn.Module):
    """Patches of 6x6 pixels as tokens: (N, 3, 120, 120) to (N, 400, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 384, 6, stride=6)
        self.norm = nn.LayerNorm(384)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Swin(nn.Module):
    """The backbone: faces (N, 3, 120, 120) to embeddings (N, 512), not normalised.

    `projection` makes the query-key-value layer of every block, `head` the layer that gives the embedding.
    """

    def __init__(self, projection: Projection = nn.Linear, head: Projection = nn.Linear) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, 400, 384))
        self.layers = nn.ModuleList([
            Stage(384, heads=8, grid=20, depth=2, merges=True, projection=projection),
            Stage(768, heads=16, grid=10, depth=18, merges=True, projection=projection),
            Stage(1536, heads=16, grid=5, depth=2, merges=False, projection=projection),
        ])  # fmt: skip
        self.norm = nn.LayerNorm(1536)
        tokens = 5 * 5 * 1536
        self.feature_layer = nn.Sequential(
            nn.BatchNorm1d(tokens), nn.Dropout(0.25), head(tokens, 512), nn.BatchNorm1d(512)
        )

    def embed(self, x: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Embed faces; two adapters want `alpha` (N, 1), the share of the second, which may leave 0..1."""
        x = self.patch_embed(x) + self.absolute_pos_embed
        for layer in self.layers:
            x = layer(x, alpha)
        return self.feature_layer(self.norm(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)


class CNNIQA(nn.Module):
    """Image quality without a reference, as pyiqa has it: pictures (N, 3, H, W) to scores (N, 1), about 0..1, higher is better.

    It was trained on pixels in 0..1; PETALface feeds it the backbone's input, in -1..1, and sets its threshold for that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 50, 7)
        self.fc1 = nn.Linear(100, 800)
        self.dropout = nn.Dropout(0.5)
        self.fc2 = nn.Linear(800, 800)
        self.fc3 = nn.Linear(800, 1)

    def forward(self, x: Tensor) -> Tensor:
        responses = self.conv1(x)
        pooled = torch.cat([responses.amax(dim=(2, 3)), responses.amin(dim=(2, 3))], dim=1)
        return self.fc3(torch.relu(self.fc2(self.dropout(torch.relu(self.fc1(pooled))))))


class PETALface(Swin):
    """Swin with two adapters in every block, whose blend the quality network decides for each face.

    alpha = 0.5 + (quality - threshold), not clamped (arXiv:2412.07771; the released code).
    """

    threshold: Tensor

    def __init__(self, rank: int) -> None:
        super().__init__(partial(BlendedLinear, rank=rank), partial(AdaptedLinear, rank=rank))
        self.quality = CNNIQA()
        self.register_buffer("threshold", torch.tensor(0.5))

    def train(self, mode: bool = True) -> "PETALface":
        """Enter or leave training mode; the quality network, which is never trained, judges as ever."""
        super().train(mode)
        self.quality.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x, 0.5 + self.quality(x) - self.threshold)


def build_base(state_dict: StateDict) -> Swin:
    """Build the backbone without adapters. Raises CheckpointMismatch, naming the keys, for any other weights."""
    return load(Swin(), state_dict, "PETALface's backbone without adapters")


def build_single(state_dict: StateDict) -> Swin:
    """Build the backbone with one adapter a block, of the rank that the weights have.

    Raises CheckpointMismatch, naming the keys, for any other weights.
    """
    network = Swin(partial(AdaptedLinear, rank=_rank(state_dict)))
    return load(network, state_dict, "PETALface with one adapter a block")


def build(state_dict: StateDict) -> PETALface:
    """Build the backbone with two adapters a block, of the rank that the weights have, and its quality network.

    Raises CheckpointMismatch, naming the keys, for any other weights.
    """
    return load(PETALface(_rank(state_dict)), state_dict, "PETALface with two adapters a block")


def _rank(state_dict: StateDict) -> int:
    return shape_of(state_dict, "layers.0.blocks.0.attn.qkv.trainable_lora_down.weight")[0]


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a released backbone file: a bare state dict; masks that the code never applies and derived indices are left out.

    Raises CheckpointMismatch if it holds no state dict.
    """
    derived = ("attn_mask", "relative_position_index")
    return {key: value for key, value in unwrap(checkpoint).items() if not key.endswith(derived)}


def official_blended(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a released file with two adapters together with CNNIQA's, or what `with_quality` made of them.

    Raises CheckpointMismatch for the released file alone, which lacks the quality network.
    """
    if "params" in checkpoint:
        return with_quality({key: value for key, value in checkpoint.items() if key != "params"}, checkpoint)
    state_dict = official(checkpoint)
    if any("trainable_lora_down2" in key for key in state_dict) and "threshold" not in state_dict:
        raise CheckpointMismatch(
            "The file has two adapters but not the quality network that blends them. Register it with CNNIQA's weights: "
            "--weights model.pt --weights CNNIQA_koniq10k-e6f14c91.pth (of pyiqa)."
        )
    return state_dict


def with_quality(backbone: Mapping[str, Any], quality: Mapping[str, Any], threshold: float = 0.5) -> dict[str, Tensor]:
    """Join a released file with two adapters and pyiqa's released CNNIQA file into the state dict of PETALface.

    `threshold` is the quality at which both adapters count alike; those of the released weights are not published, 0.5 is
    the code's default. Raises CheckpointMismatch if either holds no state dict.
    """
    scorer = {f"quality.{key}": value for key, value in unwrap(quality, "params").items()}
    return official(backbone) | scorer | {"threshold": torch.tensor(threshold)}


def trains(parameter: str) -> bool:
    """Adapters are trained, nothing else (arXiv:2412.07771; the released train_iqa.py)."""
    return "trainable_lora" in parameter


_PREPROCESS = Preprocess(ARCFACE_112.scaled("arcface-120", 120), Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3)
_SOURCE = "https://huggingface.co/kartiknarayan/PETALface"
_LICENCE = "MIT (code); weights: none stated"
PETALFACE_BASE = ModelSpec(
    name="petalface-base",
    role=Role.EMBED,
    title="PETALface's Swin backbone without adapters",
    licence=_LICENCE,
    source=f"{_SOURCE} (swin_{{arcface,cosface}}_webface{{4m,12m}}/model.pt)",
    paper="arXiv:2412.07771",
    build=build_base,
    official=official,
    preprocess=_PREPROCESS,
    dimension=512,
)
PETALFACE_SINGLE = ModelSpec(
    name="petalface-single",
    role=Role.EMBED,
    title="PETALface's Swin backbone with one LoRA adapter a block",
    licence=_LICENCE,
    source=f"{_SOURCE} (an adapted model.pt without trainable_lora_down2)",
    paper="arXiv:2412.07771",
    build=build_single,
    official=official,
    preprocess=_PREPROCESS,
    trains=trains,
    dimension=512,
)
PETALFACE = ModelSpec(
    name="petalface",
    role=Role.EMBED,
    title="PETALface: Swin with two LoRA adapters blended by image quality",
    licence=f"{_LICENCE}; quality network CNNIQA: non-commercial",
    source=f"{_SOURCE} (an adapted model.pt with trainable_lora_down2) and CNNIQA_koniq10k-e6f14c91.pth of "
    "https://github.com/chaofengc/IQA-PyTorch, registered together",
    paper="arXiv:2412.07771",
    build=build,
    official=official_blended,
    preprocess=_PREPROCESS,
    trains=trains,
    dimension=512,
    notes="The quality thresholds of the released weights are not published; 0.5 is the code's default.",
)
SPECS = (PETALFACE_BASE, PETALFACE_SINGLE, PETALFACE)
