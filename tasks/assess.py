"""Assess: how good a face is, and whether it needs restoring."""

from dataclasses import replace

import numpy as np
import torch

from models.quality import assess_quality
from tasks.photo_faces import (
    LANDMARKS,
    PORTRAIT,
    QUALITY,
    RESTORED_FACES,
    SCORES,
    TO_RESTORE,
    PhotoFaces,
    crop,
    quality_part,
)
from tasks.recipe import Recipe

# A face is restored if its eyes are closer than this in the photo, so that the kept crop would be mostly interpolation,
MAX_RESTORED_EYE_DISTANCE = 24.0  # px
# or if it is blurred,
MAX_RESTORED_SHARPNESS = 0.35  # of 0..1; blurring a sharp portrait by a sigma of 2 pixels of its 256 takes it to 0.28
# but not if too little is left to restore from: under this, noses and eyes were invented in the wrong place or shape.
MIN_RESTORED_QUALITY = 0.5  # seen on the demo's old scans and on old photographs: 0.47 grotesque, 0.51 and up plausible


def assess(photo: PhotoFaces, recipe: Recipe) -> PhotoFaces:
    """Add the quality score with its parts, and select the crops of the faces that need restoring.

    The restorer's view of the others is dropped, unless another model looks at faces in the same view.
    """
    arrays = photo.arrays
    quality = assess_quality(*(torch.from_numpy(arrays[name]) for name in (PORTRAIT, LANDMARKS, SCORES)))
    parts = {quality_part(name): value.numpy() for name, value in quality.parts().items()}
    photo = photo.having(**{QUALITY: quality.overall.numpy()}, **parts)
    if recipe.restorer is None or recipe.restorer.spec.preprocess is None:
        return photo
    view = crop(recipe.restorer.spec.preprocess.template)
    rows = np.flatnonzero(needs_restoration(photo.arrays))
    if len(rows):
        photo = photo.having(**{TO_RESTORE: photo.arrays[view][rows], RESTORED_FACES: rows})
    others = [version.spec.preprocess for version in (recipe.embedder, *recipe.describers)]
    if view in {crop(preprocess.template) for preprocess in others if preprocess is not None}:
        return photo
    return replace(photo, arrays={name: value for name, value in photo.arrays.items() if name != view})


def needs_restoration(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Which faces (n,) bool the quality gate sends to the restorer."""
    small = arrays[quality_part("inter_eye_distance")] < MAX_RESTORED_EYE_DISTANCE
    blurred = arrays[quality_part("sharpness")] < MAX_RESTORED_SHARPNESS
    return (small | blurred) & (arrays[QUALITY] >= MIN_RESTORED_QUALITY)
