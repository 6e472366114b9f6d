"""Effective resolution: how many pixels wide a face really is, whatever the size of its crop.

A crop that was enlarged from few pixels has its full size and nothing in its finest octaves. `shrunk` makes such crops,
`detail` measures them, and `ResolutionGate` turns the measure into one number that an adapted network can blend by.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96)  # px a crop is shrunk to: what that takes away tells what was there
INNER = 0.6  # of the crop's side, around its centre: the face, without what lies beyond the photo's border
FLOOR = 1e-3  # of the contrast; less is rounding
RIDGE = 1e-3  # of the gate's fit: neighbouring octaves tell much the same
NEWTON_STEPS = 20


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
    """Network inputs (N, C, S, S) to the share (N,) in 0..1 of what serves faces of full resolution: a logistic curve."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(WIDTHS)))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid((detail(x) * self.weight).sum(dim=1) + self.bias)

    @torch.no_grad()
    def fit(self, details: Tensor, shares: Tensor) -> None:
        """Set the curve to that of least cross-entropy for `details` (M, WIDTHS) whose shares (M,) are known."""
        mean, spread = details.mean(dim=0), details.std(dim=0).clamp_min(1e-6)
        inputs = torch.cat([(details - mean) / spread, torch.ones(len(details), 1)], dim=1).double()
        penalty = torch.diag(torch.tensor([RIDGE] * len(WIDTHS) + [0.0], dtype=torch.float64))
        curve = torch.zeros(len(WIDTHS) + 1, dtype=torch.float64)
        for _ in range(NEWTON_STEPS):
            found = torch.sigmoid(inputs @ curve)
            slope = inputs.T @ (found - shares) / len(inputs) + penalty @ curve
            curvature = (inputs.T * (found * (1 - found))) @ inputs / len(inputs) + penalty
            curve -= torch.linalg.solve(curvature, slope)
        self.weight.copy_(curve[:-1] / spread)
        self.bias.copy_(curve[-1] - (curve[:-1] / spread) @ mean.double())
