"""A photograph that somebody sent: it goes back to the browser inside the page, and is then forgotten."""

import base64
import io

import numpy as np
from PIL import Image

SHOWN_PIXELS = 900


def data_url(pixels: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as the address of a small JPEG that is in the address itself."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
