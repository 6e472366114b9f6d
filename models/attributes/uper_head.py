"""UPerHead and its feature pyramid: maps for each pixel from several blocks of a plain transformer (Naive Faceptor).

Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018 (arXiv:1807.10221), as mmsegmentation 0.18
builds it.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import shape_of
from models.spec import StateDict

_POOL_SCALES = (1, 2, 3, 6)


def _conv(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
            bn=nn.BatchNorm2d(width),
            relu=nn.ReLU(),
        )
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """Pyramid pooling of the smallest map, then a top-down pyramid over all four, then one classifier."""

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), _conv(channels, width, 1)) for scale in _POOL_SCALES
        )
        self.bottleneck = _conv(channels + len(_POOL_SCALES) * width, width, 3)
        self.lateral_convs = nn.ModuleList(_conv(channels, width, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(_conv(width, width, 3) for _ in range(3))
        self.fpn_bottleneck = _conv(4 * width, width, 3)
        self.conv_seg = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits (N, K, H, W) at the size of the first of four maps (N, C, H / 2^i, W / 2^i)."""
        *larger, smallest = maps
        pooled = [_resized(pool(smallest), smallest) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([smallest, *pooled], dim=1))
        merged = [top]
        for conv, level in zip(reversed(self.lateral_convs), reversed(larger), strict=True):
            lateral = conv(level)
            merged.insert(0, lateral + _resized(merged[0], lateral))
        outs = [conv(level) for conv, level in zip(self.fpn_convs, merged[:-1], strict=True)] + [top]
        joined = torch.cat([outs[0], *(_resized(out, outs[0]) for out in outs[1:])], dim=1)
        return self.conv_seg(self.fpn_bottleneck(joined))


class PyramidHead(nn.Module):
    """Four equal maps made a pyramid of four sizes (4, 2, 1 and 1/2), then UPerHead."""

    def __init__(self, state_dict: StateDict, prefix: str) -> None:
        super().__init__()
        channels = shape_of(state_dict, f"{prefix}fpns.1.weight")[0]
        outputs, width, _, _ = shape_of(state_dict, f"{prefix}head.conv_seg.weight")
        self.fpns = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(channels, channels, 2, stride=2),
                    nn.BatchNorm2d(channels),
                    nn.GELU(),
                    nn.ConvTranspose2d(channels, channels, 2, stride=2),
                ),
                nn.ConvTranspose2d(channels, channels, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.head = UPerHead(channels, width, outputs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits (N, K, 4H, 4W) of four maps (N, C, H, W)."""
        return self.head([fpn(level) for fpn, level in zip(self.fpns, maps, strict=True)])
