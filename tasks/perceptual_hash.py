"""What a picture looks like, in 64 bits: copies in another size, format or quality differ in few of them."""

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128  # px; smaller than that it is reduced with care, which takes long from a large picture


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """Hash a picture (H, W, 3) uint8: 64 bits in hexadecimal, by the signs of its coarse cosine transform (pHash)."""
    image = Image.fromarray(pixels)
    factor = min(image.size) // SIDE
    return str(imagehash.phash(image.reduce(factor) if factor > 1 else image))
