"""Assess: what can be measured of a face without learning, how good it is, and whether it needs restoring."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from models.alignment import outside_share
from models.attributes.measured import INTER_EYE_DISTANCE, measured
from models.quality import assess_quality
from models.template import ARCFACE_112
from tasks.describe import columns
from tasks.execution.transfer import upload
from tasks.photo_faces import (
    BOXES,
    LANDMARKS,
    PORTRAIT,
    QUALITY,
    RESTORED_FACES,
    SCORES,
    TO_RESTORE,
    PhotoFaces,
    crop,
    estimate,
    handed_out,
    of_all,
    quality_part,
)
from tasks.recipe import MEASURED_VERSION, Recipe

EYE_DISTANCE = estimate(MEASURED_VERSION.contract, INTER_EYE_DISTANCE.name, "value")

# A face is restored if its eyes are closer than this in the photo, so that the kept crop would be mostly interpolation,
MAX_RESTORED_EYE_DISTANCE = 24.0  # px
# or if it is blurred,
MAX_RESTORED_SHARPNESS = 0.35  # of 0..1; blurring a sharp portrait by a sigma of 2 pixels of its 256 takes it to 0.28
# but not if too little is left to restore from: under this, noses and eyes were invented in the wrong place or shape.
MIN_RESTORED_QUALITY = 0.5  # seen on the demo's old scans and on old photographs: 0.47 grotesque, 0.51 and up plausible


def assess(photos: Sequence[PhotoFaces], recipe: Recipe, device: str = "cpu") -> list[PhotoFaces]:
    """Add what is measured and the quality score with its parts, and select the crops of the faces that need restoring.

    The restorer's view of the others is dropped, unless another model looks at faces in the same view.
    """
    return [_to_restore(photo, recipe) for photo in measure(photos, device)]


def measure(photos: Sequence[PhotoFaces], device: str = "cpu") -> list[PhotoFaces]:
    """Add what is measured of each face, and the quality score with its parts. Pixels are looked at on `device`."""
    if not photos:
        return []
    crops = upload(of_all(photos, PORTRAIT), device)
    landmarks, scores = (torch.from_numpy(of_all(photos, name)) for name in (LANDMARKS, SCORES))
    quality = assess_quality(crops, landmarks, scores)
    arrays = {quality_part(name): value.numpy() for name, value in quality.parts().items()}
    arrays[QUALITY] = quality.overall.numpy()
    facts = measured(quality, crops, _beyond_border(photos))
    arrays |= columns(MEASURED_VERSION, facts, frozenset(facts))
    return handed_out(photos, arrays)


def _to_restore(photo: PhotoFaces, recipe: Recipe) -> PhotoFaces:
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


def _beyond_border(photos: Sequence[PhotoFaces]) -> torch.Tensor:
    """Share (n,) of each face, brow to chin and cheek to cheek, that lies beyond its photo's border."""
    boxes, landmarks = (torch.from_numpy(of_all(photos, name)) for name in (BOXES, LANDMARKS))
    sizes = torch.tensor([[photo.height, photo.width] for photo in photos for _ in range(photo.face_count)])
    return outside_share(ARCFACE_112.transforms(boxes, landmarks), sizes.reshape(-1, 2), ARCFACE_112.size)


def needs_restoration(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Which faces (n,) bool the quality gate sends to the restorer."""
    small = arrays[EYE_DISTANCE] < MAX_RESTORED_EYE_DISTANCE
    blurred = arrays[quality_part("sharpness")] < MAX_RESTORED_SHARPNESS
    return (small | blurred) & (arrays[QUALITY] >= MIN_RESTORED_QUALITY)
