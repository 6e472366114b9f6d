"""Covered: how much of a face, from brow to chin, looks unlike a face: behind a mask, a hand, sunglasses, or a black bar.

The gradients of a face make a field of 5 x 4 cells with 8 directions each. Two areas of it, the eyes (rows 1, 2) and nose
with mouth (rows 3 to 5), are compared with the mean over ordinary faces by the cosine of the angle between them once the
ordinary variation is whitened away: the adaptive coherence estimator of radar, which asks "is the signal in there?" whatever
its strength (Kraut, Scharf, McWhorter, "Adaptive subspace detectors", IEEE Transactions on Signal Processing 49(1), 2001).
Nothing is learned from coverings: an area that is less like the mean than nearly all ordinary faces' counts as covered.

The statistics beside this module, means and whitenings of 3,351 aligned grey faces of Labeled Faces in the Wild (half of the
people there) and their mirror images, are made by `python -m tests.benchmarks.covered fit`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from models.constant import constant
from models.quality import LUMA

STATISTICS = Path(__file__).with_name("covered.safetensors")
# Of a crop aligned to `models.quality.QUALITY_TEMPLATE`, in blocks of 4 pixels (the eyes are then 16 apart): the face and what
# is beside it, and one block more around it for the gradients.
BLOCK = 4
FACE = (slice(80, 220), slice(60, 196))
INNER = (slice(0, 30), slice(4, 28))  # blocks: brow to chin, cheek to cheek
LOWER = slice(12, None)  # blocks: the lower half with its outline, whose contrast is the measure
CELL, DIRECTIONS = 6, 8
AREAS = {"eyes": slice(0, 2), "mouth": slice(2, 5)}  # rows of cells
ROWS = 5


@dataclass(frozen=True)
class Area:
    """What ordinary faces look like in an area of D numbers.

    `whitening` (D, D) makes their variation equal in all directions; `typical` (K, D) are unit vectors, whitened, that ordinary
    faces point to: their mean and, for the mouth, the mean less what all cells and directions share, as they do in a pattern.
    Of the cosines with these, one ordinary face in 200 is under `low` (K,) and one in 65 under `high` (K,).
    """

    whitening: Tensor
    typical: Tensor
    low: Tensor
    high: Tensor


def covered_share(crops: Tensor) -> Tensor:
    """Share (N,) float32 in 0..1 of each face that looks covered, from crops (N, 256, 256, 3) uint8 RGB of QUALITY_TEMPLATE.

    Covered eyes are two fifths of a face, a covered nose and mouth three. Grey, toned or in color makes no difference.
    """
    areas = descriptors(crops)
    shares = torch.zeros(len(crops), device=crops.device)
    for name, rows in AREAS.items():
        area = statistics()[name]
        low, high = (part.to(crops.device, non_blocking=True) for part in (area.low, area.high))
        unlike = ((high - likeness(areas[name], area)) / (high - low)).clamp(0, 1).amax(dim=1)
        shares += unlike * (rows.stop - rows.start) / ROWS
    return shares


def likeness(descriptors: Tensor, area: Area) -> Tensor:
    """Cosines (N, K) of descriptors (N, D) with what is typical of an area."""
    whitened = F.normalize(descriptors @ area.whitening.to(descriptors.device, non_blocking=True), dim=1)
    return whitened @ area.typical.to(descriptors.device, non_blocking=True).T


def descriptors(crops: Tensor) -> dict[str, Tensor]:
    """What is compared: for each area (N, D) roots of mean gradients by cell and direction, relative to the face's contrast."""
    face = crops[:, FACE[0], FACE[1]]
    luma = F.avg_pool2d((face.float() @ constant(LUMA, crops.device))[:, None], BLOCK)[:, 0]
    gradient = torch.stack([luma[:, 1:-1, 2:] - luma[:, 1:-1, :-2], luma[:, 2:, 1:-1] - luma[:, :-2, 1:-1]], dim=1)
    contrast = (
        gradient[:, :, LOWER].square().sum(dim=1).mean(dim=(1, 2)).sqrt().clamp_min(1)
    )  # a grey level is rounding
    inner = gradient[:, :, INNER[0], INNER[1]]
    strength = torch.linalg.vector_norm(inner, dim=1, keepdim=True) / contrast[:, None, None, None]
    # A gradient is shared out between the two directions that it lies between.
    step = 2 * torch.pi / DIRECTIONS
    directions = torch.arange(DIRECTIONS, device=crops.device)[:, None, None] * step
    apart = (
        torch.remainder(torch.atan2(inner[:, 1], inner[:, 0])[:, None] - directions + torch.pi, 2 * torch.pi) - torch.pi
    )
    cells = F.avg_pool2d(F.relu(1 - apart.abs() / step) * strength, CELL).sqrt()
    return {name: cells[:, :, rows].flatten(1) for name, rows in AREAS.items()}


@cache
def statistics() -> dict[str, Area]:
    """Return what ordinary faces look like, by area."""
    values = load_file(STATISTICS)
    parts = ("whitening", "typical", "low", "high")
    return {name: Area(*(values[f"{name}.{part}"].float() for part in parts)) for name in AREAS}
