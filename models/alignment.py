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
    # One crop at a time: each works in the cache, and memory does not grow with the batch.
    for crop, transform, photo in zip(crops, transforms.double().cpu(), photo_index.tolist(), strict=True):
        _sample(photos[photo], transform, crop)
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


def _sample(photo: Tensor, transform: Tensor, crop: Tensor) -> None:
    size = len(crop)
    # Photo pixels per crop pixel, along the photo's x and y.
    step = torch.linalg.vector_norm(transform[:, :2], dim=1)
    block = [int(s) if s > 2 else 1 for s in step.tolist()]
    corners = transform @ torch.tensor([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1], [1, 1, 1, 1]]).double()
    low = [max(int(value) - n, 0) for value, n in zip(corners.amin(dim=1).floor().tolist(), block, strict=True)]
    # The neighbour to the right of the last position belongs to a block that must be whole.
    high = [int(value) + 2 * n + 1 for value, n in zip(corners.amax(dim=1).ceil().tolist(), block, strict=True)]
    patch = photo[low[1] : max(high[1], 0), low[0] : max(high[0], 0)]
    if not patch.numel():
        return
    means = _block_sums(_block_sums(patch, block[1]).transpose(0, 1), block[0]).permute(2, 1, 0).float()
    means /= block[0] * block[1]
    # To grid_sample's coordinates, in which the edges of the outer pixels are -1 and 1.
    extent = torch.tensor([[means.shape[2] * block[0]], [means.shape[1] * block[1]]])
    to_grid = transform.clone()
    to_grid[:, 2] += 0.5 - torch.tensor(low)
    to_grid = to_grid * 2 / extent
    to_grid[:, 2] -= 1
    grid = _positions(to_grid.float().to(photo.device), size).permute(1, 2, 0)
    values = F.grid_sample(means[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    crop.copy_(values[0].permute(1, 2, 0).round_())


def _block_sums(pixels: Tensor, count: int) -> Tensor:
    """Sum every `count` rows into one, int32; a last block that is cut by the photo's end counts what it has."""
    sums = pixels[::count].int() if count > 1 else pixels
    for k in range(1, count):
        rows = pixels[k::count]
        sums[: len(rows)] += rows
    return sums
