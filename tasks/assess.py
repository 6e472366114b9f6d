"""Assess: how good a face is, and whether it needs restoring."""

from dataclasses import replace

import numpy as np
import torch

from models.quality import assess_quality
from tasks.install import ModelVersion
from tasks.photo_faces import (
    LANDMARKS,
    PORTRAIT,
    QUALITY,
    RESTORED_FACES,
    SCORES,
    PhotoFaces,
    crop,
    quality_part,
)

# A face is restored if its eyes are closer than this in the photo, so that the kept crop would be mostly interpolation,
MAX_RESTORED_EYE_DISTANCE = 24.0  # px
# or if it is blurred,
MAX_RESTORED_SHARPNESS = 0.35  # of 0..1; blurring a sharp portrait by a sigma of 2 pixels of its 256 takes it to 0.28
# but not if too little is left to restore from: under this, noses and eyes were invented in the wrong place or shape.
MIN_RESTORED_QUALITY = 0.5  # seen on the demo's old scans and on old photographs: 0.47 grotesque, 0.51 and up plausible


def assess(photo: PhotoFaces, restorer: ModelVersion | None) -> PhotoFaces:
    """Add the quality score with its parts, and keep the restorer's view only of faces that need restoring."""
    arrays = photo.arrays
    quality = assess_quality(*(torch.from_numpy(arrays[name]) for name in (PORTRAIT, LANDMARKS, SCORES)))
    parts = {quality_part(name): value.numpy() for name, value in quality.parts().items()}
    photo = photo.having(**{QUALITY: quality.overall.numpy()}, **parts)
    if restorer is None or restorer.spec.preprocess is None:
        return photo
    view = crop(restorer.spec.preprocess.template)
    rows = np.flatnonzero(needs_restoration(photo.arrays))
    kept = {name: value for name, value in photo.arrays.items() if name != view}
    if not len(rows):
        return replace(photo, arrays=kept)
    return replace(photo, arrays={**kept, view: photo.arrays[view][rows], RESTORED_FACES: rows})


def needs_restoration(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Which faces (n,) bool the quality gate sends to the restorer."""
    small = arrays[quality_part("inter_eye_distance")] < MAX_RESTORED_EYE_DISTANCE
    blurred = arrays[quality_part("sharpness")] < MAX_RESTORED_SHARPNESS
    return (small | blurred) & (arrays[QUALITY] >= MIN_RESTORED_QUALITY)
