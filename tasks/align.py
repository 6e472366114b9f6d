"""Align: cut every face out of its photo, in each view that a later stage needs."""

from collections.abc import Sequence

import numpy as np
import torch

from models.alignment import align
from models.template import Template
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded
from tasks.photo_faces import BOXES, LANDMARKS, PORTRAIT, PhotoFaces, crop
from tasks.recipe import PORTRAIT_TEMPLATE

MIN_EYE_DISTANCE = 50.0  # px; the recognition crop has 55: a face with less in a shrunk photo is cut from the full one


def align_faces(item: Decoded, limits: DecodeLimits, templates: Sequence[Template]) -> PhotoFaces:
    """Add the portraits and the crops of `templates`; the photo is decoded in full if a face is too small as it is."""
    photo, picture, factor = item.photo, item.picture, item.factor
    views = {PORTRAIT: PORTRAIT_TEMPLATE, **{crop(template): template for template in templates}}
    if not photo.face_count:
        return photo.having(**{name: np.zeros((0, t.size, t.size, 3), np.uint8) for name, t in views.items()})
    landmarks = photo.arrays[LANDMARKS]
    eyes = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
    if factor > 1 and eyes.min() / factor < MIN_EYE_DISTANCE:
        picture, factor = decode(item.data, limits, long_side=None), 1.0
    corners = torch.from_numpy((photo.arrays[BOXES].reshape(-1, 2, 2) + 0.5) / factor - 0.5)
    points = torch.from_numpy((landmarks + 0.5) / factor - 0.5)
    pixels, index = [torch.from_numpy(picture.pixels)], torch.zeros(photo.face_count, dtype=torch.int64)
    return photo.having(
        **{
            name: align(pixels, template.transforms(corners.reshape(-1, 4), points), index, template.size).numpy()
            for name, template in views.items()
        }
    )
