"""Effective resolution: how many pixels wide a face really is, whatever the size of its crop.

A crop that was enlarged from few pixels has its full size and nothing in its finest octaves. `shrunk` makes such crops,
`detail` measures them, and `ResolutionGate` makes of that a width in px, and a share by which an adapted network can blend.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96)  # px a crop is shrunk to: what that takes away tells what was there
INNER = 0.6  # of the crop's side, around its centre: the face, without what lies beyond the photo's border
FLOOR = 1e-3  # of the contrast; less is rounding
RIDGE = 1e-3  # of the gate's fit: neighbouring octaves tell much the same
# px. Of its accuracy of 0.978 dlib's embedding keeps 0.973 at 48 px, 0.964 at 32, 0.935 at 24, 0.844 at 16 (LFW, folds 1-5).
POOR, GOOD = 24, 48


def shrunk(crops: Tensor, sides: Sequence[int], modes: Sequence[str]) -> Tensor:
    """Shrink each crop to its side in px and enlarge it again, as a small picture of the face would come to the network.

    `crops` (N, S, S, 3) uint8, same out. Modes are "bicubic" or "bilinear", antialiased on the way down; the small picture is
    rounded to whole grey levels, as it would be in a file. What lies beyond the photo's border stays black, and does not
    darken its neighbours.
    """
    x = crops.permute(0, 3, 1, 2).float()
    inside = (~beyond_border(crops))[:, None].float()
    size, result = x.shape[-1], torch.empty_like(x)
    for row, side, mode in zip(range(len(x)), sides, modes, strict=True):
        here = slice(row, row + 1)
        small = F.interpolate(torch.cat([x[here], inside[here]], dim=1), (side, side), mode=mode, antialias=True)
        small = (small[:, :3] / small[:, 3:].clamp_min(0.1)).round().clamp(0, 255)
        result[here] = F.interpolate(small, (size, size), mode=mode) * inside[here]
    return result.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def beyond_border(crops: Tensor) -> Tensor:
    """Which pixels (N, S, S) bool of crops (N, S, S, 3) lie outside the photo: black from there on to a side of the crop."""
    black = (crops.amax(dim=3) == 0).byte()
    runs = [black.cummin(dim=dim).values for dim in (1, 2)]
    runs += [black.flip(dim).cummin(dim=dim).values.flip(dim) for dim in (1, 2)]
    return torch.stack(runs).amax(dim=0).bool()


def detail(x: Tensor) -> Tensor:
    """Return what shrinking to each of WIDTHS takes away (N, WIDTHS), as the logarithm of its share of the contrast.

    `x` (N, C, S, S) in any normalisation: neither a factor nor an offset changes the result.
    """
    size = x.shape[-1]
    edge = round(size * (1 - INNER) / 2)
    grey = x[:, :, edge : size - edge, edge : size - edge].float().mean(dim=1, keepdim=True)
    contrast = (grey - grey.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3)).sqrt()
    lost = []
    for width in WIDTHS:
        side = round(width * INNER)
        small = F.interpolate(grey, (side, side), mode="bilinear", antialias=True)
        back = F.interpolate(small, grey.shape[-2:], mode="bilinear")
        lost.append((grey - back).square().mean(dim=(1, 2, 3)).sqrt())
    return (torch.stack(lost, dim=1) / contrast.clamp_min(1e-6)[:, None] + FLOOR).log()


class ResolutionGate(nn.Module):
    """Network inputs (N, C, S, S) to the share (N,) in 0..1 of what serves faces of full resolution.

    The share rises with the logarithm of a face's effective width, from 0 at POOR to 1 at GOOD pixels: it is exactly 1 for
    whatever is clearly larger.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(WIDTHS)))
        self.bias = nn.Parameter(torch.zeros(1))

    def octaves(self, x: Tensor) -> Tensor:
        """Estimate the binary logarithm (N,) of the effective width in px."""
        return (detail(x) * self.weight).sum(dim=1) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return ((self.octaves(x) - math.log2(POOR)) / math.log2(GOOD / POOR)).clamp(0, 1)

    @torch.no_grad()
    def fit(self, details: Tensor, sides: Tensor) -> None:
        """Fit the estimate, by least squares, to `details` (M, WIDTHS) of crops that were shrunk to `sides` (M,) px."""
        spread, mean = torch.std_mean(details.double(), dim=0)
        spread = spread.clamp_min(1e-6)
        inputs = (details.double() - mean) / spread
        target = sides.double().log2()
        curvature = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(len(WIDTHS), dtype=torch.float64)
        weight = torch.linalg.solve(curvature, inputs.T @ (target - target.mean()) / len(inputs)) / spread
        self.weight.copy_(weight)
        self.bias.copy_(target.mean() - weight @ mean)
