"""Align: cut every face out of its photo, in each view that a later stage needs."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.alignment import View, align_views, part_under
from models.detection.area import runs
from models.template import Template
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded
from tasks.execution.transfer import download, upload
from tasks.photo_faces import BOXES, LANDMARKS, PORTRAIT, PhotoFaces, crop, handed_out, of_all
from tasks.recipe import PORTRAIT_TEMPLATE

MIN_EYE_DISTANCE = 50.0  # px; the recognition crop has 55: a face with less in a shrunk photo is cut from the full one


def align_faces(item: Decoded, limits: DecodeLimits, templates: Sequence[Template]) -> PhotoFaces:
    """Add the portraits and the crops of `templates` to one photo, as `align_photos` does."""
    [photo] = align_photos([item], limits, templates)
    return photo


def align_photos(items: Sequence[Decoded], limits: DecodeLimits, templates: Sequence[Template]) -> list[PhotoFaces]:
    """Add the portraits and the crops of `templates` to each photo; one in which a face is too small is decoded in full.

    Crops are cut on the device that the photo's pixels are on.
    """
    views = {PORTRAIT: PORTRAIT_TEMPLATE, **{crop(template): template for template in templates}}
    large = [item for item in items if item.photo.face_count and not _too_small(item)]
    aligned = iter([photo for run in runs([item.pixels for item in large]) for photo in _cut(large[run], views)])
    photos = []
    for item in items:
        if not item.photo.face_count:
            photos.append(
                item.photo.having(**{n: np.zeros((0, t.size, t.size, 3), np.uint8) for n, t in views.items()})
            )
        elif _too_small(item):
            photos += _cut_in_full(item, limits, views)  # alone: it may have a hundred megapixels
        else:
            photos.append(next(aligned))
    return photos


def _too_small(item: Decoded) -> bool:
    """Whether a face has lost pixels that it needs when its photo was shrunk."""
    landmarks = item.photo.arrays[LANDMARKS]
    eyes = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
    return bool(item.factor > 1 and eyes.min() / item.factor < MIN_EYE_DISTANCE)


def _cut(items: Sequence[Decoded], templates: Mapping[str, Template]) -> list[PhotoFaces]:
    """Cut the faces of all photos in the views, which are given by the arrays' names."""
    photos = [item.photo for item in items]
    counts = [photo.face_count for photo in photos]
    factors = np.repeat(np.array([item.factor for item in items], np.float32), counts)[:, None, None]
    owners = torch.arange(len(items)).repeat_interleave(torch.tensor(counts))
    crops = align_views([item.pixels for item in items], _views(photos, factors, templates), owners)
    return handed_out(photos, download(dict(zip(templates, crops, strict=True))))


def _cut_in_full(item: Decoded, limits: DecodeLimits, templates: Mapping[str, Template]) -> list[PhotoFaces]:
    """Cut the faces of one photo out of the part of its original that they lie in."""
    photo, picture = item.photo, item.picture
    part, views = part_under(_views([photo], np.float32(1), templates), picture.height, picture.width)
    pixels = upload(decode(item.data, limits, part=part).pixels, str(item.pixels.device))
    crops = align_views([pixels], views, torch.zeros(photo.face_count, dtype=torch.int64))
    return handed_out([photo], download(dict(zip(templates, crops, strict=True))))


def _views(
    photos: Sequence[PhotoFaces], factors: NDArray[np.float32] | np.float32, templates: Mapping[str, Template]
) -> list[View]:
    """How the faces of photos that were shrunk by `factors` are to be seen."""
    boxes, landmarks = (of_all(photos, name) for name in (BOXES, LANDMARKS))
    corners = torch.from_numpy((boxes.reshape(-1, 2, 2) + 0.5) / factors - 0.5).reshape(-1, 4)
    points = torch.from_numpy((landmarks + 0.5) / factors - 0.5)
    return [View(template.transforms(corners, points), template.size, template.fill) for template in templates.values()]
