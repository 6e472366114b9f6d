"""Area resizing of many windows of many photos, from summed-area tables.

Crow, "Summed-Area Tables for Texture Mapping", SIGGRAPH 1984: once sums over all top-left rectangles are tabled, the mean of
any rectangle costs four look-ups, whatever its size. An image pyramid and thousands of candidate windows share one table.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.constant import constant

# Rows summed per step of a two-level prefix sum: about the square root of a photo's height, so both levels have few steps.
BLOCK = 32
# Pixels of photos whose tables are held at once (12 bytes each): bounds memory whatever the batch.
PIXELS_AT_ONCE = 1 << 23


def runs(photos: Sequence[Tensor]) -> Iterator[slice]:
    """Cut a batch of photos (H, W, 3) into runs of at most PIXELS_AT_ONCE (or one photo)."""
    start, pixels = 0, 0
    for k, photo in enumerate(photos):
        size = photo.shape[0] * photo.shape[1]
        if k > start and pixels + size > PIXELS_AT_ONCE:
            yield slice(start, k)
            start, pixels = k, 0
        pixels += size
    if len(photos) > start:
        yield slice(start, len(photos))


class PaddedPhotos:
    """Photos (H, W, 3) uint8, each thought to lie in a border of `padding` pixels of the constant `grey`.

    The border is never stored: means over rectangles that reach into it follow from how many pixels do. Tables are int32
    (12 bytes a pixel); in photos above 8 megapixels they wrap around, which differences of two entries undo.
    `extents` (photos, 2) int64 holds width and height with the border.
    """

    def __init__(self, photos: Sequence[Tensor], padding: Sequence[int], grey: int, device: torch.device) -> None:
        self.sizes = [(photo.shape[0], photo.shape[1]) for photo in photos]
        self.padding = list(padding)
        self.grey = grey
        self.device = device
        alike: dict[tuple[int, int], list[int]] = {}
        for k, size in enumerate(self.sizes):
            alike.setdefault(size, []).append(k)
        cells = sum((height + 1) * (width + 1) for height, width in self.sizes)
        self._sums = torch.zeros(cells, 3, dtype=torch.int32, device=device)
        self._tables: dict[tuple[int, int], Tensor] = {}  # of all photos of one size together: (n, H + 1, W + 1, 3)
        self._places, offsets, end = [0] * len(photos), [0] * len(photos), 0
        for (height, width), members in alike.items():
            one = (height + 1) * (width + 1)
            for place, k in enumerate(members):
                self._places[k], offsets[k] = place, end + place * one
            table = self._sums[end : end + one * len(members)].view(len(members), height + 1, width + 1, 3)
            _fill(table, torch.stack([photos[k] for k in members]).to(device))
            self._tables[height, width], end = table, end + one * len(members)
        geometry = [
            (height, width, pad, offset)
            for (height, width), pad, offset in zip(self.sizes, padding, offsets, strict=True)
        ]
        self._geometry = constant(geometry, device).view(-1, 4)
        self.extents = (self._geometry[:, :2] + 2 * self._geometry[:, 2:3]).flip(1)

    def padded_size(self, photo: int) -> tuple[int, int]:
        """Height and width of a photo with its border."""
        height, width = self.sizes[photo]
        return height + 2 * self.padding[photo], width + 2 * self.padding[photo]

    def resized(self, photos: Sequence[int], size: tuple[int, int], rows: range, columns: range) -> Tensor:
        """Resize padded photos of equal size and padding to `size` (height, width), and return the part `rows` x `columns`.

        Float32 (photos, rows, columns, 3), 0..255.
        """
        first = photos[0]
        (top, bottom), (left, right) = (
            _bins(torch.arange(part.start, part.stop, device=self._sums.device), padded, target)
            for part, padded, target in zip((rows, columns), self.padded_size(first), size, strict=True)
        )
        pad, (height, width) = self.padding[first], self.sizes[first]
        places = [self._places[k] for k in photos]
        table = self._tables[height, width]
        in_a_row = places == list(range(places[0], places[0] + len(places)))
        table = table[places[0] : places[0] + len(places)] if in_a_row else table[places]
        left, right = left.repeat_interleave(3), right.repeat_interleave(3)  # from here on numbers, three to a pixel
        channels = torch.arange(3, device=left.device).repeat(len(columns))
        y0, y1 = (top - pad).clamp(0, height), (bottom - pad).clamp(0, height)
        x0, x1 = (left - pad).clamp(0, width), (right - pad).clamp(0, width)
        bands = table.index_select(1, y1).sub_(table.index_select(1, y0)).flatten(2)
        sums = _picked(bands, 3 * x1 + channels).sub_(_picked(bands, 3 * x0 + channels))
        inside, whole = (
            high.int()[:, None] * wide.int() for high, wide in ((y1 - y0, x1 - x0), (bottom - top, right - left))
        )
        return self._means(sums, inside, whole).unflatten(2, (-1, 3))

    def windows(self, photos: Tensor, boxes: Tensor, size: int) -> Tensor:
        """Resize windows of the padded photos to `size` x `size`: float32 (N, size, size, 3), 0..255.

        `photos` (N,) are indices; `boxes` (N, 4) int64 x1, y1, x2, y2, half open, inside the padded photo and not empty.
        """
        height, width, pad, offset = self._geometry[photos].unbind(dim=1)
        cells = torch.arange(size, device=boxes.device)
        left, right = (edge + boxes[:, 0:1] for edge in _bins(cells, (boxes[:, 2] - boxes[:, 0])[:, None], size))
        top, bottom = (edge + boxes[:, 1:2] for edge in _bins(cells, (boxes[:, 3] - boxes[:, 1])[:, None], size))
        x0, x1 = (_clip(edge - pad[:, None], width) for edge in (left, right))
        y0, y1 = (_clip(edge - pad[:, None], height) for edge in (top, bottom))

        def corner(y: Tensor, x: Tensor) -> Tensor:
            row = y * (width[:, None] + 1) + offset[:, None]
            return self._sums.index_select(0, (row[:, :, None] + x[:, None, :]).view(-1)).view(-1, size, size, 3)

        sums = corner(y1, x1).sub_(corner(y0, x1)).sub_(corner(y1, x0)).add_(corner(y0, x0))
        return self._means(
            sums,
            ((y1 - y0)[:, :, None] * (x1 - x0)[:, None, :])[..., None],
            ((bottom - top)[:, :, None] * (right - left)[:, None, :])[..., None],
        )

    def sums(self, photos: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Sums over what of photos (N,) lies above rows `y` and left of columns `x`, both (N, ...) int64; border not counted.

        Int32 (N, ..., 3), which may have wrapped around.
        """
        _, width, _, offset = self._geometry[photos].view(-1, 4, *(1 for _ in y.shape[1:])).unbind(dim=1)
        cells = y * (width + 1) + x + offset
        return self._sums.index_select(0, cells.flatten()).view(*cells.shape, 3)

    def _means(self, sums: Tensor, inside: Tensor, whole: Tensor) -> Tensor:
        """Means over rectangles of `whole` pixels, of which `inside` lie in the photo and have these `sums` (overwritten)."""
        if any(self.padding):
            sums += self.grey * (whole - inside)
        return sums.float() / whole


def _fill(table: Tensor, photos: Tensor) -> None:
    """Write the sums over all top-left rectangles into `table` (n, H+1, W+1, 3), whose first rows and columns are zero."""
    rows = table[:, 1:]
    rows[:, :, 1:] = photos
    torch.cumsum(rows, dim=2, out=rows)
    # torch.cumsum over rows is 7 times slower on a CPU: it walks down one column at a time.
    for k in range(1, BLOCK):
        below = rows[:, k::BLOCK]
        below += rows[:, k - 1 :: BLOCK][:, : below.shape[1]]
    for start in range(BLOCK, rows.shape[1], BLOCK):
        rows[:, start : start + BLOCK] += rows[:, start - 1 : start]


def _picked(bands: Tensor, numbers: Tensor) -> Tensor:
    """What stands at `numbers` in every row of `bands` (n, rows, width)."""
    if bands.device.type == "cpu":  # where index_select walks down one column at a time, and takes twice as long
        return bands.gather(2, numbers.expand(*bands.shape[:2], -1))
    return bands.index_select(2, numbers)


def _bins(cells: Tensor, length: int | Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Half-open source intervals that `cells` of an axis resized from `length` to `size` average over."""
    return cells * length // size, -(-(cells + 1) * length // size)


def _clip(edges: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(edges.clamp_min(0), limit[:, None])
