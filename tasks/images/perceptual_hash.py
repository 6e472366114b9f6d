"""What a picture looks like, in 64 bits: copies in another size, format or quality differ in few of them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128  # px; smaller than that it is reduced with care, which takes long from a large picture
SMALL, BITS = 32, 8  # px a side that are transformed, and coarse frequencies along each that are kept
COSINES = 2 * np.cos(np.pi / SMALL * np.arange(BITS)[:, None] * (np.arange(SMALL) + 0.5))  # rows of a DCT-II


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """Hash a picture (H, W, 3) uint8: 64 bits in hexadecimal, by the signs of its coarse cosine transform (pHash).

    The bits are those of `imagehash.phash`, without SciPy, whose import takes longer than many hashes.
    """
    image = Image.fromarray(pixels)
    factor = min(image.size) // SIDE
    grey = (image.reduce(factor) if factor > 1 else image).convert("L")
    small = np.asarray(grey.resize((SMALL, SMALL), Image.Resampling.LANCZOS), np.float64)
    # What is nothing but rounding, as in a picture of one colour, is zero.
    coarse = (COSINES @ small @ COSINES.T).round(6)
    return np.packbits(coarse > np.median(coarse)).tobytes().hex()
