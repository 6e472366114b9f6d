"""The hashes that catalogs hold stay valid: ours are those of the library that made the first ones."""

import imagehash
import numpy as np
from PIL import Image

from tasks.images.perceptual_hash import perceptual_hash
from tests.photographs import scene
from tests.portraits import landscape, portrait


def test_hashes_are_those_of_imagehash() -> None:
    plain = [np.full((40, 60, 3), grey, np.uint8) for grey in (0, 128, 255)]
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 90, 3), np.uint8)
    for pixels in [
        portrait(96),
        portrait(250),
        landscape(200),
        *(scene(100, 80, seed) for seed in range(20)),
        *plain,
        *noise,
    ]:
        assert perceptual_hash(pixels) == str(imagehash.phash(Image.fromarray(pixels)))
