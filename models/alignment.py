"""Alignment: cut faces out of photos as a crop template wants to see them.

One function for every template: `Template.transforms` says where each crop pixel lies in the photo, `align` looks there.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.constant import constant
from models.detection.area import PaddedPhotos
from models.template import BLACK, Rgb

# Crop pixels that are sampled at once on a GPU: bounds memory (about 250 bytes each) however many faces a photo has.
PIXELS_AT_ONCE = 1 << 20


class View(NamedTuple):
    """How faces are to be seen: transforms (N, 2, 3), the crops' size, and the colour of what lies outside of the photo."""

    transforms: Tensor
    size: int
    fill: Rgb = BLACK


def align(photos: Sequence[Tensor], transforms: Tensor, photo_index: Tensor, size: int, fill: Rgb = BLACK) -> Tensor:
    """Sample N crops (N, size, size, 3) uint8 from `photos`, each (H, W, 3) uint8.

    `transforms` (N, 2, 3) carry crop pixels to photo pixels (centres at whole numbers, see `models.template`);
    `photo_index` (N,) says of which photo. Bilinear; where a crop shrinks the photo by more than two, the photo is first
    averaged over blocks of whole pixels, so that nothing aliases. What lies outside the photo has the colour `fill`. Values
    are rounded to the nearest. Crops are on the photos' device.

    Raises:
        ValueError: if a transform is not finite, or a photo is not (H, W, 3) uint8; it names the row or the photo.
    """
    [crops] = align_views(photos, [View(transforms, size, fill)], photo_index)
    return crops


def align_views(photos: Sequence[Tensor], views: Sequence[View], photo_index: Tensor) -> list[Tensor]:
    """Sample the same N faces in several views, as `align` does in one.

    On a CPU one crop after the other, and only the parts under faces are touched. On a GPU, where each call costs as much for
    a crop as for a hundred, all crops of a view at once, out of summed-area tables of whole photos (12 bytes a pixel) that the
    views share. The two differ by rounding: by one grey level at most.

    Raises:
        ValueError: as `align`.
    """
    for k, photo in enumerate(photos):
        if photo.dtype != torch.uint8 or photo.dim() != 3 or photo.shape[2] != 3:
            raise ValueError(f"photo {k} is {tuple(photo.shape)} {photo.dtype}; (H, W, 3) torch.uint8 is needed")
    sizes = torch.tensor([p.shape[:2] for p in photos]).reshape(-1, 2)[photo_index]
    looks = [_look(view, sizes) for view in views]
    sample = _one_by_one if not photos or photos[0].device.type == "cpu" else _together
    return sample(photos, looks, photo_index)


def part_under(views: Sequence[View], height: int, width: int) -> tuple[tuple[int, int, int, int], list[View]]:
    """The part of one photo under the crops of all views, and the same views of that part alone.

    Left, top, right and bottom are half open, and a pixel lies between them at least. Crops of the part are those of the photo.

    Raises:
        ValueError: as `align`.
    """
    bounds = torch.cat([_look(view, torch.tensor([[height, width]])).bounds for view in views])
    left, top = bounds[:, :2].amin(dim=0).minimum(torch.tensor([width - 1, height - 1])).tolist()
    right, bottom = bounds[:, 2:].amax(dim=0).maximum(torch.tensor([left + 1, top + 1])).tolist()
    corner = torch.tensor([[0, 0, left], [0, 0, top]])
    return (left, top, right, bottom), [view._replace(transforms=view.transforms.double() - corner) for view in views]


def outside_share(transforms: Tensor, photo_sizes: Tensor, size: int) -> Tensor:
    """Share (N,) float32 of each crop's pixels whose centres lie outside their photo: 0 whole, 1 all outside.

    `transforms` (N, 2, 3) as for `align`; `photo_sizes` (N, 2) are height and width of each crop's photo.
    """
    shares = torch.zeros(len(transforms))
    for k, outside in _outside(transforms, photo_sizes, size):
        shares[k] = outside.double().mean()
    return shares


def blacken_outside(crops: Tensor, transforms: Tensor, photo_sizes: Tensor) -> None:
    """Make those pixels of crops (N, S, S, 3) black that `outside_share` counts."""
    for k, outside in _outside(transforms, photo_sizes, crops.shape[1]):
        crops[k].masked_fill_(outside.to(crops.device, non_blocking=True)[..., None], 0)


def _outside(transforms: Tensor, photo_sizes: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Of the crops that reach beyond their photo: which they are, and which pixels (size, size) bool lie outside."""
    transforms = transforms.double().cpu()
    corners = _corners(transforms, size)
    beyond = ((corners < -0.5) | (corners >= photo_sizes.flip(1)[:, :, None] - 0.5)).flatten(1).any(dim=1)
    for k in beyond.nonzero().flatten().tolist():
        height, width = photo_sizes[k].tolist()
        x, y = _positions(transforms[k], size)
        yield k, (x < -0.5) | (x >= width - 0.5) | (y < -0.5) | (y >= height - 0.5)


def _positions(transforms: Tensor, size: int) -> Tensor:
    """Photo x and y (..., 2, size, size) of every crop pixel, by transforms (..., 2, 3)."""
    steps = torch.arange(size, dtype=transforms.dtype, device=transforms.device)
    along_x, along_y, origin = transforms.unbind(dim=-1)
    return along_x[..., None, None] * steps + (along_y[..., None] * steps + origin[..., None])[..., None]


def _corners(transforms: Tensor, size: int) -> Tensor:
    """Photo x and y (N, 2, 4) of the corners of crops of `size`, by float64 transforms (N, 2, 3)."""
    last = size - 1
    return transforms @ torch.tensor([[0, last, 0, last], [0, 0, last, last], [1, 1, 1, 1]]).double()


class _Look(NamedTuple):
    """What each of N crops has to look at, in one view.

    `size` of a crop, transforms `to_grid` (N, 2, 3) float32 from its pixels to grid_sample's coordinates in the part of the
    photo under it, the part's `bounds` (N, 4) int64 left, top, right, bottom, and width and height of the blocks (N, 2) int64
    that are averaged there; `fill` is beyond.
    """

    size: int
    fill: Rgb
    to_grid: Tensor
    bounds: Tensor
    blocks: Tensor


def _look(view: View, sizes: Tensor) -> _Look:
    """`sizes` (N, 2): height and width of the photos."""
    finite = view.transforms.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"the transforms of rows {rows} are not finite; drop those faces before aligning")
    transforms = view.transforms.double().cpu()
    # Photo pixels per crop pixel, along the photo's x and y.
    step = torch.linalg.vector_norm(transforms[:, :, :2], dim=2)
    block = torch.where(step > 2, step.floor(), 1)
    corners = _corners(transforms, view.size)
    ends = sizes.flip(1)
    low = (corners.amin(dim=2).floor() - block).clamp_min(0).minimum(ends)
    # The neighbour to the right of the last position belongs to a block that must be whole.
    high = (corners.amax(dim=2).ceil() + 2 * block + 1).minimum(ends).clamp_min(0)
    # In grid_sample's coordinates the edges of the outer pixels, here of whole blocks, are -1 and 1.
    extent = ((high - low) / block).ceil() * block
    to_grid = transforms.clone()
    to_grid[:, :, 2] += 0.5 - low
    to_grid *= 2 / extent[..., None].clamp_min(1)
    to_grid[:, :, 2] -= 1
    return _Look(view.size, view.fill, to_grid.float(), torch.cat([low, high], dim=1).long(), block.long())


def _one_by_one(photos: Sequence[Tensor], looks: Sequence[_Look], photo_index: Tensor) -> list[Tensor]:
    """One crop at a time: each works in the cache, and memory does not grow with the batch."""
    views = [
        torch.tensor(look.fill, dtype=torch.uint8).repeat(len(photo_index), look.size, look.size, 1) for look in looks
    ]
    for crops, look in zip(views, looks, strict=True):
        rows = zip(crops, look.to_grid, look.bounds.tolist(), look.blocks.tolist(), photo_index.tolist(), strict=True)
        for crop, to_grid, bounds, block, photo in rows:
            _sample(photos[photo], to_grid, bounds, block, look.fill, crop)
    return views


def _sample(photo: Tensor, to_grid: Tensor, bounds: list[int], block: list[int], fill: Rgb, crop: Tensor) -> None:
    left, top, right, bottom = bounds
    patch = photo[top:bottom, left:right]
    if not patch.numel():
        return
    if fill != BLACK:  # as differences from the fill: what is missing then counts as that
        patch = patch - torch.tensor(fill, dtype=torch.int16)
    width, height = block
    means = _block_sums(_block_sums(patch, height).transpose(0, 1), width).permute(2, 1, 0).float()
    if width * height > 1:
        means /= width * height
    grid = _positions(to_grid, len(crop)).permute(1, 2, 0)
    values = F.grid_sample(means[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    if fill != BLACK:
        values += torch.tensor(fill)[:, None, None]
    torch.stack(values[0].round_().byte().unbind(), dim=2, out=crop)


def _block_sums(pixels: Tensor, count: int) -> Tensor:
    """Sum every `count` rows into one, int32; a last block that is cut by the photo's end counts what it has."""
    sums = pixels[::count].int() if count > 1 else pixels
    for k in range(1, count):
        rows = pixels[k::count]
        sums[: len(rows)] += rows
    return sums


def _together(photos: Sequence[Tensor], looks: Sequence[_Look], photo_index: Tensor) -> list[Tensor]:
    """All crops of a view in the same few calls: what lies under them differs in size, but not in its number of look-ups."""
    tables = PaddedPhotos(photos, [0] * len(photos), 0, photos[0].device)
    views = []
    for look in looks:
        count = max(PIXELS_AT_ONCE // look.size**2, 1)
        parts = zip(*(part.split(count) for part in (look.to_grid, look.bounds, look.blocks, photo_index)), strict=True)
        crops = [_sample_together(tables, _Look(look.size, look.fill, *part[:3]), part[3]) for part in parts]
        empty = torch.zeros(0, look.size, look.size, 3, dtype=torch.uint8, device=photos[0].device)
        views.append(torch.cat([empty, *crops]))
    return views


def _sample_together(tables: PaddedPhotos, look: _Look, photo_index: Tensor) -> Tensor:
    """What `_sample` does, for N crops: bilinear between the means of the four blocks around every crop pixel."""
    device = tables.device
    to_grid, bounds, blocks, photo = (t.to(device, non_blocking=True) for t in (*look[2:], photo_index))
    low, high = bounds[:, :, None, None].split(2, dim=1)  # (N, 2, 1, 1): x and y side by side, as in `_positions`
    block = blocks[:, :, None, None]
    counts = (high - low + block - 1) // block
    # In blocks from the first one's centre, as grid_sample.
    places = ((_positions(to_grid, look.size) + 1) * counts - 1) / 2
    first = places.floor()
    across, down = (places - first)[..., None].unbind(dim=1)
    # Three edges bound a block and the next. Blocks beyond the part have no pixels, and the last one those that it has.
    edges = [torch.minimum(torch.maximum(low + (first.long() + k) * block, low), high) for k in range(3)]
    strips = []
    for _, y in (edge.unbind(dim=1) for edge in edges):
        sums = [tables.sums(photo, y, x) for x, _ in (edge.unbind(dim=1) for edge in edges)]
        strips.append((sums[1] - sums[0], sums[2] - sums[1]))
    upper, lower = (
        torch.lerp((end[0] - start[0]).float(), (end[1] - start[1]).float(), across) for start, end in pairwise(strips)
    )
    means = torch.lerp(upper, lower, down) / block.prod(dim=1)[..., None]
    if look.fill != BLACK:
        lengths = [(end - start).float() for start, end in pairwise(edges)]
        covered = torch.lerp(lengths[0], lengths[1], places - first) / block
        means += (1 - covered.prod(dim=1))[..., None] * constant(look.fill, device)
    return means.round_().byte()
