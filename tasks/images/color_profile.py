"""Embedded ICC profiles: from a picture's own colours to sRGB."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

Transform = ImageCms.ImageCmsTransform


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Carry an image of mode L, RGB or CMYK from its embedded ICC profile to sRGB; return it in mode RGB.

    RGB that is all grey may have a profile for grey: WebP stores no other, and transparency may have been laid on white.
    Perceptual intent, 8 bits per channel. Safe in threads.

    Raises:
        ValueError: if the profile cannot be read or does not describe pictures of this mode.
    """
    if image.mode == "RGB" and profile[16:20] == b"GRAY" and _is_grey(image):
        image = image.getchannel(0)
    transform = _transform(profile, image.mode)
    if transform is None:
        return image.convert("RGB")
    try:
        return transform.apply(image)
    except (ValueError, ImageCms.PyCMSError) as error:
        raise ValueError(f"the colour profile cannot be applied: {error}") from error


def is_srgb(profile: bytes) -> bool:
    """Whether a profile says of RGB what is true of it without one."""
    try:
        return _transform(profile, "RGB") is None
    except ValueError:
        return False


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return red == green == blue


@lru_cache(maxsize=16)  # a collection comes from a few cameras; a CMYK transform takes some 10 ms to build
def _transform(profile: bytes, mode: str) -> Transform | None:
    """Build the transform to sRGB, or None where it would change nothing worth the time (sRGB itself under any name)."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        # Without lcms's one-pixel cache, which threads would share.
        transform = Transform(source, _srgb(), mode, "RGB", flags=ImageCms.Flags.NOCACHE)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        raise ValueError(f"the colour profile cannot be read: {error}") from error
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    changed = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return transform if np.abs(changed).max() > 1 else None


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """A small image with colours from all over the cube."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    return Image.fromarray(grid).convert(mode)
