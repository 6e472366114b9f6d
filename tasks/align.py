"""Align: cut every face out of its photo, in each view that a later stage needs."""

from collections.abc import Sequence

import numpy as np
import torch

from models.alignment import align_views
from models.template import Template
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded
from tasks.photo_faces import BOXES, LANDMARKS, PORTRAIT, PhotoFaces, crop
from tasks.recipe import PORTRAIT_TEMPLATE
from tasks.transfer import download, upload

MIN_EYE_DISTANCE = 50.0  # px; the recognition crop has 55: a face with less in a shrunk photo is cut from the full one


def align_faces(item: Decoded, limits: DecodeLimits, templates: Sequence[Template]) -> PhotoFaces:
    """Add the portraits and the crops of `templates`; the photo is decoded in full if a face is too small as it is.

    Crops are cut on the device that the photo's pixels are on.
    """
    photo, pixels, factor = item.photo, item.pixels, item.factor
    views = {PORTRAIT: PORTRAIT_TEMPLATE, **{crop(template): template for template in templates}}
    if not photo.face_count:
        return photo.having(**{name: np.zeros((0, t.size, t.size, 3), np.uint8) for name, t in views.items()})
    landmarks = photo.arrays[LANDMARKS]
    eyes = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
    if factor > 1 and eyes.min() / factor < MIN_EYE_DISTANCE:
        pixels, factor = upload(decode(item.data, limits, long_side=None).pixels, str(pixels.device)), 1.0
    corners = torch.from_numpy((photo.arrays[BOXES].reshape(-1, 2, 2) + 0.5) / factor - 0.5).reshape(-1, 4)
    points = torch.from_numpy((landmarks + 0.5) / factor - 0.5)
    wanted = [(template.transforms(corners, points), template.size) for template in views.values()]
    crops = align_views([pixels], wanted, torch.zeros(photo.face_count, dtype=torch.int64))
    return photo.having(**download(dict(zip(views, crops, strict=True))))
