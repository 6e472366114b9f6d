"""What MTCNN's P-Net scans: the levels of an image pyramid, cut into tiles that many photos share calls for.

Cutting and gathering change no result: a tile's cells are the level's own, and equal tiles ride in one call whatever photo
they come from. On a CPU the cut matters more, since activations should stay in the cache; on a GPU the gathering does.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from models.detection.area import PaddedPhotos

FIELD, STRIDE = 12, 2  # pixels of a pyramid level that a cell of P-Net sees, and from one cell to the next


class Tile(NamedTuple):
    """A part of one pyramid level that P-Net sees in one call. Starts are even, so that its cells are cells of the level."""

    photo: int
    level: int
    size: tuple[int, int]
    scale: float
    rows: range
    columns: range


def plan(padded: PaddedPhotos, min_face_size: float, factor: float, pixels: int) -> list[Tile]:
    """Plan the scan of all photos for faces of at least `min_face_size` photo pixels, levels shrinking by `factor`.

    Every level is cut into bands of rows of about `pixels`, which overlap by what P-Net's field needs.
    """
    tiles: list[Tile] = []
    level = 0
    for photo, (size, pad) in enumerate(zip(padded.sizes, padded.padding, strict=True)):
        for scale, target in _levels(*padded.padded_size(photo), min_face_size, factor):
            rows, columns = (_seen(length, pad, side) for length, side in zip(size, target, strict=True))
            band = max(pixels // len(columns) // STRIDE * STRIDE, 4 * FIELD)
            step = band - (FIELD - STRIDE)
            for start in range(rows.start, max(rows.stop - (FIELD - STRIDE), rows.start + 1), step):
                part = range(start, min(start + band, rows.stop))
                tiles.append(Tile(photo, level, target, scale, part, columns))
            level += 1
    return tiles


def gather(tiles: Sequence[Tile], pixels: int) -> Iterator[list[int]]:
    """Gather the tiles of equal size, from whatever photo and level, into calls of about `pixels`."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for k, tile in enumerate(tiles):
        alike[len(tile.rows), len(tile.columns)].append(k)
    for (rows, columns), members in alike.items():
        count = max(pixels // (rows * columns), 1)
        yield from (members[k : k + count] for k in range(0, len(members), count))


def _levels(height: int, width: int, min_face_size: float, factor: float) -> Iterator[tuple[float, tuple[int, int]]]:
    """Yield scale and size (height, width) of the pyramid's levels, until the short side is below P-Net's field."""
    scale = FIELD / min_face_size
    side = min(height, width) * scale
    while side >= FIELD:
        yield scale, (int(height * scale + 1), int(width * scale + 1))
        scale *= factor
        side *= factor


def _seen(length: int, pad: int, size: int) -> range:
    """Pixels of a level's axis from which some cell of P-Net sees the photo itself and not the border alone.

    The axis of `length` + 2 `pad` photo pixels is resized to `size`. Cells that see only the border all have the
    probability of plain grey (1e-4), and are never computed; but for one at the end, where the length is odd.
    """
    first = pad * size // (length + 2 * pad)
    last = -(-(pad + length) * size // (length + 2 * pad)) - 1
    return range(max(first - (FIELD - 1), 0) // STRIDE * STRIDE, min(last + FIELD, size))
