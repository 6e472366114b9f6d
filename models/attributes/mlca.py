"""Multi-Level Channel Attention: task features from several depths of a backbone, as SwinFace and Naive Faceptor use it.

Qin et al., "SwinFace: A Multi-task Transformer for Face Recognition, Expression Recognition, Age Estimation and Attribute
Estimation", TCSVT 2023 (arXiv:2308.11509), Section III-C.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.checkpoint import shape_of
from models.spec import StateDict


class LevelConvolutions(nn.ModuleList):
    """A 3x3 convolution for each level, their results side by side: maps (N, C_i, H, W) to (N, sum of D_i, H, W)."""

    def __init__(self, channels: Sequence[tuple[int, int]]) -> None:
        super().__init__(nn.Conv2d(c, d, 3, padding=1, bias=False) for c, d in channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return torch.cat([conv(level) for conv, level in zip(self, levels, strict=True)], dim=1)


class ChannelAttention(nn.Module):
    """Weigh every channel by a gate computed from its mean and its maximum (CBAM, Woo et al. 2018, eq. 2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        gate = torch.sigmoid(self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3))))
        return x * gate[:, :, None, None]


class MultiLevelChannelAttention(nn.Module):
    """Convolutions of all levels, channel attention, global maximum: maps of equal size to one vector (N, C)."""

    def __init__(self, channels: Sequence[tuple[int, int]], hidden: int) -> None:
        super().__init__()
        width = sum(d for _, d in channels)
        self.conv = LevelConvolutions(channels)
        self.channel_attention = ChannelAttention(width, hidden)
        self.norm = nn.BatchNorm1d(width, eps=2e-5)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        return self.norm(self.channel_attention(self.conv(levels)).relu().amax(dim=(2, 3)))


def multi_level_channel_attention(state_dict: StateDict, prefix: str) -> MultiLevelChannelAttention:
    """Return the module whose weights lie under `prefix`, for four levels.

    Raises:
        CheckpointMismatch: if there is none.
    """
    kernels = [shape_of(state_dict, f"{prefix}conv.{level}.weight") for level in range(4)]
    hidden = shape_of(state_dict, f"{prefix}channel_attention.mlp.1.weight")[0]
    return MultiLevelChannelAttention([(c, d) for d, c, _, _ in kernels], hidden)


def task_subnet(width: int) -> nn.Sequential:
    """Two fully connected layers that make a task's feature (N, width) from attended ones."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5)
    )
