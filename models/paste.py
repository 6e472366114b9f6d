"""Pasting restored faces back into their photo, so that nobody sees where they begin.

A crop fades out towards its edge, and its broad colours are those of the photo: what differs over more than a fraction of the
face comes from the photo, only detail from the restorer. Pixels that no crop reaches stay as they are, to the bit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEATHER = 0.25  # of the half crop, from its edge inwards: the width over which it fades
ROUNDNESS = 4  # exponent of the superellipse that the mask is: between a circle (2) and the crop itself
BORDER = 0.06  # of the half crop: beyond the photo's border the restorer saw one colour, so near it the crop fades, too
COLOUR_GRID = 24  # cells along the face's bounding box, over which colours are matched
COLOUR_KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)


def enlarged(transforms: Tensor, factor: float) -> Tensor:
    """Transforms (N, 2, 3) to photo pixels, made to lead to those of the photo enlarged by `factor`."""
    result = transforms.double() * factor
    result[:, :, 2] += 0.5 * factor - 0.5
    return result


def paste(photo: Tensor, faces: Tensor, transforms: Tensor) -> Tensor:
    """Paste restored crops (N, S, S, 3) uint8 into a photo (H, W, 3) uint8; returns a new one.

    `transforms` (N, 2, 3) carry the crops' pixels to the photo's. Faces are pasted in their order; where they overlap, the
    later one fades into the earlier.

    Raises:
        ValueError: if a transform is not finite or squeezes the crop to nothing.
    """
    result = photo.clone()
    for face, transform in zip(faces, transforms.double(), strict=True):
        _paste(result, face, transform)
    return result


def mask(u: Tensor, v: Tensor) -> Tensor:
    """Opacity of a crop at positions in -1..1 along its axes: 1 in the middle, 0 at the edge and beyond, smooth between."""
    radius = (u.abs() ** ROUNDNESS + v.abs() ** ROUNDNESS) ** (1 / ROUNDNESS)
    return _smooth((1 - radius) / FEATHER)


def _paste(photo: Tensor, face: Tensor, transform: Tensor) -> None:
    height, width = photo.shape[:2]
    size = face.shape[0]
    determinant = torch.linalg.det(transform[:, :2])
    if not bool(torch.isfinite(transform).all()) or determinant.abs() < 1e-12:
        raise ValueError(f"the transform {transform.tolist()} does not lead from a crop to a photo")
    corners = torch.tensor(
        [[-0.5, size - 0.5, -0.5, size - 0.5], [-0.5, -0.5, size - 0.5, size - 0.5], [1.0] * 4]
    ).double()
    reached = transform @ corners
    low, high = reached.amin(dim=1).floor(), reached.amax(dim=1).ceil()
    x1, y1 = (max(int(value), 0) for value in low.tolist())
    x2, y2 = min(int(high[0]) + 1, width), min(int(high[1]) + 1, height)
    if x1 >= x2 or y1 >= y2:
        return
    u, v = _positions(transform, size, (x1, y1, x2, y2))
    here = photo[y1:y2, x1:x2]
    background = here.permute(2, 0, 1).float()
    sampled = _sampled(face, u, v, determinant.abs().sqrt().item())
    inside = _inside(transform, size, (x1, y1, x2, y2), (height, width))
    opacity = mask(u, v) * inside
    weight = ((u.abs() <= 1) & (v.abs() <= 1)).float() * inside
    matched = sampled + _broad(background - sampled, weight)
    blended = background + opacity * (matched - background)
    photo[y1:y2, x1:x2] = torch.where(
        (opacity > 0)[..., None], blended.clamp(0, 255).round().byte().permute(1, 2, 0), here
    )


def _positions(transform: Tensor, size: int, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Where a box's photo pixels lie in the crop, each (h, w), with the crop's edges at -1 and 1."""
    x1, y1, x2, y2 = box
    inverse = torch.linalg.inv(transform[:, :2])
    x, y = torch.arange(x1, x2).double() - transform[0, 2], torch.arange(y1, y2).double() - transform[1, 2]
    u, v = ((inverse[i, 0] * x)[None, :] + (inverse[i, 1] * y)[:, None] for i in (0, 1))
    return ((2 * u + 1) / size - 1).float(), ((2 * v + 1) / size - 1).float()


def _sampled(face: Tensor, u: Tensor, v: Tensor, pixels: float) -> Tensor:
    """The crop (3, h, w) float32 at these positions; `pixels` of the photo are as long as one of the crop."""
    values = face.permute(2, 0, 1)[None].float()
    if pixels < 1:  # reduce it first, or its detail would alias
        side = max(1, round(face.shape[0] * pixels))
        values = F.interpolate(values, (side, side), mode="bilinear", antialias=True)
    grid = torch.stack([u, v], dim=2)[None]
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _inside(transform: Tensor, size: int, box: tuple[int, int, int, int], photo: tuple[int, int]) -> Tensor:
    """Opacity (h, w) that falls towards those sides of the photo that the crop reaches beyond."""
    x1, y1, x2, y2 = box
    width = max(1.0, BORDER * size / 2 * float(torch.linalg.det(transform[:, :2]).abs().sqrt()))
    corners = transform @ torch.tensor([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1], [1] * 4]).double()
    low, high = corners.amin(dim=1).tolist(), corners.amax(dim=1).tolist()
    distances = []
    for axis, (begin, end, extent) in enumerate(((x1, x2, photo[1]), (y1, y2, photo[0]))):
        places = torch.arange(begin, end).float()
        before = (places + 0.5) / width if low[axis] < -0.5 else torch.full_like(places, torch.inf)
        after = (extent - places - 0.5) / width if high[axis] > extent - 0.5 else torch.full_like(places, torch.inf)
        distances.append(_smooth(torch.minimum(before, after)))
    return distances[1][:, None] * distances[0][None, :]


def _broad(difference: Tensor, weight: Tensor) -> Tensor:
    """The broad part of a difference (3, h, w): its weighted mean around every position."""
    height, width = weight.shape
    grid = (min(COLOUR_GRID, height), min(COLOUR_GRID, width))
    stacked = torch.cat([difference * weight, weight[None]])[None]
    cells = F.interpolate(stacked, grid, mode="area")[0]
    kernel = torch.tensor(COLOUR_KERNEL) / sum(COLOUR_KERNEL)
    reach = len(COLOUR_KERNEL) // 2
    smooth = F.conv2d(F.pad(cells, (reach,) * 4)[:, None], kernel.outer(kernel)[None, None])[:, 0]
    mean = smooth[:3] / smooth[3:].clamp_min(1e-4)
    return F.interpolate(mean[None], (height, width), mode="bilinear", align_corners=False)[0]


def _smooth(x: Tensor) -> Tensor:
    """From 0 at 0 to 1 at 1, level at both."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
