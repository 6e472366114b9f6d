"""Crop geometry."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.template import ARCFACE_112, DLIB_150, FACEXLIB_512, FFHQ_512, BoxTemplate, similarity_transforms
from tests.reference import shared


@given(
    angle=st.floats(-math.pi, math.pi), scale=st.floats(0.05, 20), x=st.floats(-1000, 1000), y=st.floats(-1000, 1000)
)
def test_similarity_recovers_any_rotation_scale_and_shift(angle: float, scale: float, x: float, y: float) -> None:
    expected = torch.tensor(
        [
            [scale * math.cos(angle), -scale * math.sin(angle), x],
            [scale * math.sin(angle), scale * math.cos(angle), y],
        ],
        dtype=torch.float64,
    )
    source = torch.tensor(ARCFACE_112.points, dtype=torch.float64)
    target = source @ expected[:, :2].T + expected[:, 2]
    torch.testing.assert_close(similarity_transforms(source, target[None])[0], expected, rtol=1e-9, atol=1e-6)


def test_dlib_template_is_the_measured_one() -> None:
    torch.testing.assert_close(torch.tensor(DLIB_150.points[0]), torch.tensor((47.901, 45.885)), rtol=0, atol=1e-3)


def test_scaled_template_shows_the_same_part_of_the_photo() -> None:
    landmarks = torch.tensor([[(30.0, 40.0), (70.0, 42.0), (50.0, 60.0), (35.0, 80.0), (66.0, 81.0)]])
    boxes = torch.zeros(1, 4)
    large = FFHQ_512.transforms(boxes, landmarks)[0]
    small = FFHQ_512.scaled("ffhq-64", 64).transforms(boxes, landmarks)[0]
    assert FACEXLIB_512.scaled("facexlib-64", 64).fill == FACEXLIB_512.fill
    for corner in ((0.0, 0.0), (1.0, 0.0), (0.3, 1.0)):  # as a share of the crop's edges
        points = [t[:, :2] @ (torch.tensor(corner) * size - 0.5) + t[:, 2] for t, size in ((large, 512), (small, 64))]
        torch.testing.assert_close(points[0], points[1], rtol=0, atol=1e-3)


def test_square_box_keeps_its_centre_and_covers_its_longer_side() -> None:
    template = BoxTemplate("face-64", 64, margin_pixels=10)
    transform = template.transforms(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.zeros(1, 5, 2))[0]
    corners = torch.tensor([[-0.5, -0.5], [63.5, 63.5]]) @ transform[:, :2].T + transform[:, 2]
    torch.testing.assert_close(corners + 0.5, torch.tensor([[-10.0, 10.0], [50.0, 70.0]]))


def test_crops_for_released_models_are_fitted_as_the_released_code_fits_them() -> None:
    golden = np.load(shared("reference/restoreformer/golden_pasteback.npz"))  # by OpenCV's estimateAffinePartial2D
    landmarks = torch.from_numpy(golden["landmarks"])[None]
    to_photo = FFHQ_512.transforms(torch.zeros(1, 4), landmarks)[0].double()
    to_crop = torch.from_numpy(golden["affine"]).double()
    corners = torch.tensor([(0.0, 0.0), (511.0, 0.0), (0.0, 511.0), (511.0, 511.0)], dtype=torch.float64)
    there = corners @ to_photo[:, :2].T + to_photo[:, 2]
    back = there @ to_crop[:, :2].T + to_crop[:, 2]
    torch.testing.assert_close(back, corners, rtol=0, atol=0.05)  # px
