"""Component boxes: as the official code from 68 landmarks, and always usable from five."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.restoration.components import DFDNET_512, PARTS, POINTS_68, boxes_from_5, boxes_from_68
from tests.reference import shared

AVERAGE = torch.tensor(DFDNET_512.points)[None]


@pytest.mark.parametrize("case", [0, 1])
def test_boxes_from_68_landmarks_are_the_official_ones(case: int) -> None:
    golden = np.load(shared("reference/dfdnet/golden.npz"))
    boxes = boxes_from_68(torch.from_numpy(golden[f"landmarks_{case}"])[None])
    np.testing.assert_array_equal(boxes[0].numpy(), golden[f"landmark_boxes_{case}"])


def mirrored(boxes: Tensor) -> Tensor:
    flipped = boxes.clone()
    flipped[..., [0, 2]] = DFDNET_512.size - boxes[..., [2, 0]]
    return flipped[:, [1, 0, 2, 3]]


def test_a_mirrored_face_has_mirrored_boxes() -> None:
    flipped = AVERAGE.clone()
    flipped[..., 0] = DFDNET_512.size - 1 - flipped[..., 0]
    flipped = flipped[:, [1, 0, 2, 4, 3]]
    difference = boxes_from_5(flipped) - mirrored(boxes_from_5(AVERAGE))
    assert difference.abs().max() <= 1  # coordinates are truncated


def test_boxes_of_the_average_face_are_those_of_its_68_landmarks() -> None:
    """Landmarks spread over the parts as on an average face: both ways must put every box at the same place."""
    centre_and_half = {
        "left_eye": (192, 229, 46),
        "right_eye": (324, 228, 46),
        "nose": (257, 325, 28),
        "mouth": (257, 384, 54),
    }
    landmarks = torch.full((1, 68, 2), 256.0)
    for part, indices in zip(PARTS, POINTS_68, strict=True):
        x, y, half = centre_and_half[part]
        across = torch.linspace(-half, half, len(indices))
        landmarks[0, list(indices)] = torch.stack([x + across, torch.full_like(across, y)], dim=1)
    assert (boxes_from_5(AVERAGE) - boxes_from_68(landmarks)).abs().max() <= 4


@given(st.lists(st.floats(-2000, 2000), min_size=10, max_size=10))
def test_any_five_landmarks_give_boxes_inside_the_crop(values: list[float]) -> None:
    boxes = boxes_from_5(torch.tensor(values).view(1, 5, 2))
    sides = boxes[..., 2:] - boxes[..., :2]
    assert boxes.min() >= 0
    assert boxes.max() <= DFDNET_512.size
    assert sides.min() >= 30


def test_a_landmark_that_is_no_number_is_refused() -> None:
    landmarks = AVERAGE.clone()
    landmarks[0, 2, 1] = torch.nan
    with pytest.raises(ValueError, match="not a finite number"):
        boxes_from_5(landmarks)
