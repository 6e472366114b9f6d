"""Alignment of whole photos: faces that shrinking made too small are cut from the original."""

import numpy as np
import pytest

from models.template import ARCFACE_112, DLIB_150
from tasks.align import align_faces
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded
from tasks.photo_faces import BOXES, LANDMARKS, PhotoFaces
from tests.photographs import encode, rgb_profile, scene


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("profile", [None, rgb_profile()], ids=["plain", "wide"])
def test_a_face_too_small_in_a_shrunk_photo_is_cut_to_the_bit_from_the_original(
    orientation: int, profile: bytes | None
) -> None:
    options = {} if profile is None else {"icc_profile": profile}
    data = encode(scene(640, 420), "JPEG", orientation, **options)
    face = np.array([[0, 0], [60, 5], [30, 35], [8, 60], [55, 66]], np.float32)
    corners = np.array([[400, 30], [500, 200]], np.float32)  # the first crop reaches beyond the photo
    landmarks = np.array([1, 0.7], np.float32)[:, None, None] * face + corners[:, None]
    boxes = np.concatenate([landmarks.min(axis=1) - 25, landmarks.max(axis=1) + 20], axis=1)
    photo = PhotoFaces(0, "photo.jpg", len(data)).having(**{BOXES: boxes, LANDMARKS: landmarks})
    small, whole = (
        align_faces(Decoded(photo, decode(data, long_side=side), data), DecodeLimits(), [ARCFACE_112, DLIB_150])
        for side in (160, None)
    )
    assert small.arrays.keys() == whole.arrays.keys()
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(small.arrays[name], values)
