"""Report: what a run did, to MLflow: parameters, counts, speed, seconds per stage, and a contact sheet of its faces."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as PillowImage

from tasks.photo_faces import PORTRAIT, QUALITY, RESTORED_FACES, PhotoFaces

TILE, COLUMNS, ROWS = 96, 12, 8


@dataclass
class Tally:
    """What has happened so far in a run: counts, seconds per stage, and the portraits for the contact sheet."""

    images: int = 0
    faces: int = 0
    restored: int = 0
    shared: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    portraits: list[tuple[float, np.ndarray]] = field(default_factory=list)

    def add(self, photos: Sequence[PhotoFaces]) -> None:
        """Count a batch of photos as they are recorded."""
        for photo in photos:
            self.images += 1
            self.seconds.update(photo.seconds)
            self.shared += photo.shared
            if photo.failure is not None:
                self.failures[f"{photo.failure.stage}: {photo.failure.reason}"] += 1
                continue
            self.faces += photo.face_count
            self.restored += len(photo.arrays.get(RESTORED_FACES, ()))
            for face in range(photo.face_count):
                if len(self.portraits) < COLUMNS * ROWS:
                    small = PillowImage.fromarray(photo.arrays[PORTRAIT][face]).resize((TILE, TILE))
                    self.portraits.append((float(photo.arrays[QUALITY][face]), np.asarray(small)))


def contact_sheet(tally: Tally) -> bytes | None:
    """A PNG of the run's first faces, best quality first; None if there are none."""
    if not tally.portraits:
        return None
    tiles = [tile for _, tile in sorted(tally.portraits, key=lambda item: -item[0])]
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.zeros((rows * TILE, min(len(tiles), COLUMNS) * TILE, 3), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = divmod(i, COLUMNS)
        sheet[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = tile
    file = io.BytesIO()
    PillowImage.fromarray(sheet).save(file, "png", compress_level=1)
    return file.getvalue()
