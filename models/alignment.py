"""Alignment: cut faces out of photos as a crop template wants to see them.

One function for every template: `Template.transforms` says where each crop pixel lies in the photo, `align` looks there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def align(photos: Sequence[Tensor], transforms: Tensor, photo_index: Tensor, size: int) -> Tensor:
    """Sample N crops (N, size, size, 3) uint8 from `photos`, each (H, W, 3) uint8.

    `transforms` (N, 2, 3) carry crop pixels to photo pixels (centres at whole numbers, see `models.template`);
    `photo_index` (N,) says of which photo. Bilinear; where a crop shrinks the photo by more than two, the photo is first
    averaged over blocks of whole pixels, so that nothing aliases. What lies outside the photo is black. Values are rounded
    to the nearest. Only the part under a face is touched. Crops are on the photos' device.

    Raises:
        ValueError: if a transform is not finite, or a photo is not (H, W, 3) uint8; it names the row or the photo.
    """
    for k, photo in enumerate(photos):
        if photo.dtype != torch.uint8 or photo.dim() != 3 or photo.shape[2] != 3:
            raise ValueError(f"photo {k} is {tuple(photo.shape)} {photo.dtype}; (H, W, 3) torch.uint8 is needed")
    finite = transforms.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"the transforms of rows {rows} are not finite; drop those faces before aligning")
    device = photos[0].device if len(photos) else torch.device("cpu")
    crops = torch.zeros(len(transforms), size, size, 3, dtype=torch.uint8, device=device)
    windows = _windows(
        transforms.double().cpu(), torch.tensor([p.shape[:2] for p in photos]).reshape(-1, 2)[photo_index], size
    )
    # One crop at a time: each works in the cache, and memory does not grow with the batch.
    for crop, to_grid, bounds, block, photo in zip(crops, *windows, photo_index.tolist(), strict=True):
        _sample(photos[photo], to_grid.to(device), bounds, block, crop)
    return crops


def outside_share(transforms: Tensor, photo_sizes: Tensor, size: int) -> Tensor:
    """Share (N,) float32 of each crop's pixels whose centres lie outside their photo: 0 whole, 1 all outside.

    `transforms` (N, 2, 3) as for `align`; `photo_sizes` (N, 2) are height and width of each crop's photo.
    """
    shares = torch.zeros(len(transforms))
    for k, (transform, (height, width)) in enumerate(zip(transforms.double().cpu(), photo_sizes.tolist(), strict=True)):
        x, y = _positions(transform, size)
        inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
        shares[k] = 1 - inside.double().mean()
    return shares


def _positions(transform: Tensor, size: int) -> Tensor:
    """Photo x and y (2, size, size) of every crop pixel."""
    steps = torch.arange(size, dtype=transform.dtype, device=transform.device)
    along_x, along_y, origin = transform.unbind(dim=1)
    return along_x[:, None, None] * steps + (along_y[:, None] * steps + origin[:, None])[..., None]


def _windows(transforms: Tensor, sizes: Tensor, size: int) -> tuple[Tensor, list[list[int]], list[list[int]]]:
    """What each of N crops has to look at: how it is sampled there, the part of the photo, and the blocks to average there.

    `transforms` (N, 2, 3) float64, `sizes` (N, 2) height and width of the photos. Returns transforms (N, 2, 3) float32 from
    crop pixels to grid_sample's coordinates in that part, its bounds (left, top, right, bottom), and block widths and heights.
    """
    # Photo pixels per crop pixel, along the photo's x and y.
    step = torch.linalg.vector_norm(transforms[:, :, :2], dim=2)
    block = torch.where(step > 2, step.floor(), 1)
    corners = transforms @ torch.tensor([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1], [1, 1, 1, 1]]).double()
    low = (corners.amin(dim=2).floor() - block).clamp_min(0)
    # The neighbour to the right of the last position belongs to a block that must be whole.
    high = (corners.amax(dim=2).ceil() + 2 * block + 1).minimum(sizes.flip(1)).clamp_min(0)
    # In grid_sample's coordinates the edges of the outer pixels, here of whole blocks, are -1 and 1.
    extent = ((high - low) / block).ceil() * block
    to_grid = transforms.clone()
    to_grid[:, :, 2] += 0.5 - low
    to_grid *= 2 / extent[..., None].clamp_min(1)
    to_grid[:, :, 2] -= 1
    return to_grid.float(), torch.cat([low, high], dim=1).long().tolist(), block.long().tolist()


def _sample(photo: Tensor, to_grid: Tensor, bounds: list[int], block: list[int], crop: Tensor) -> None:
    left, top, right, bottom = bounds
    patch = photo[top:bottom, left:right]
    if not patch.numel():
        return
    width, height = block
    means = _block_sums(_block_sums(patch, height).transpose(0, 1), width).permute(2, 1, 0).float()
    if width * height > 1:
        means /= width * height
    grid = _positions(to_grid, len(crop)).permute(1, 2, 0)
    values = F.grid_sample(means[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    crop.copy_(values[0].permute(1, 2, 0).round_())


def _block_sums(pixels: Tensor, count: int) -> Tensor:
    """Sum every `count` rows into one, int32; a last block that is cut by the photo's end counts what it has."""
    sums = pixels[::count].int() if count > 1 else pixels
    for k in range(1, count):
        rows = pixels[k::count]
        sums[: len(rows)] += rows
    return sums
