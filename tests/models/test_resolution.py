"""How many pixels wide a face really is."""

import pytest
import torch
from torch import Tensor

from models.resolution import ResolutionGate, beyond_border, detail, shrunk
from models.spec import Color, Preprocess
from models.template import DLIB_150
from tests.portraits import portrait

PREPROCESS = Preprocess(DLIB_150, Color.RGB, mean=(122.0, 117.0, 104.0), std=(256.0,) * 3)


@pytest.fixture(scope="module")
def crop() -> Tensor:
    """The face of a real portrait, (150, 150, 3)."""
    return torch.tensor(portrait(512)[20:170, 145:295])


def versions(crop: Tensor, sides: list[int], mode: str = "bicubic") -> Tensor:
    return shrunk(crop.expand(len(sides), -1, -1, -1).contiguous(), sides, [mode] * len(sides))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_the_fewer_pixels_a_face_had_the_less_detail_is_found(crop: Tensor, mode: str) -> None:
    found = detail(PREPROCESS(versions(crop, [12, 16, 24, 32, 48, 64], mode))).mean(dim=1)
    assert (found.diff() > 0).all()


def test_detail_does_not_depend_on_brightness_and_contrast(crop: Tensor) -> None:
    x = PREPROCESS(crop[None])
    torch.testing.assert_close(detail(3 * x - 5), detail(x), rtol=1e-3, atol=1e-3)


def test_detail_of_a_uniform_crop_is_finite() -> None:
    assert detail(torch.zeros(1, 3, 150, 150)).isfinite().all()


def test_shrinking_to_its_own_size_changes_nothing(crop: Tensor) -> None:
    assert torch.equal(versions(crop, [150])[0], crop)


def test_what_lies_beyond_the_photo_stays_black_and_darkens_nothing() -> None:
    crop = torch.full((1, 90, 90, 3), 200, dtype=torch.uint8)
    crop[:, :, :25] = 0
    crop[:, 40, 60] = 0  # a black pixel of the photo
    outside = beyond_border(crop)
    assert outside[:, :, :25].all()
    assert not outside[:, :, 25:].any()
    small = shrunk(crop, [20], ["bilinear"])
    assert (small[:, :, :25] == 0).all()
    assert (small[:, :20, 25:] == 200).all()


def test_gate_estimates_the_width_that_a_face_had(crop: Tensor) -> None:
    sides = [10, 12, 15, 18, 22, 27, 33, 40, 48, 58, 70, 85]
    crops = torch.cat([versions(crop, sides, mode) for mode in ("bicubic", "bilinear")])
    gate = ResolutionGate()
    gate.fit(detail(PREPROCESS(crops)), torch.tensor(sides * 2))
    unseen = PREPROCESS(versions(crop.flip(1), [16, 30, 64]))
    assert gate.octaves(unseen).exp2().tolist() == pytest.approx([16, 30, 64], rel=0.15)
    assert gate(unseen)[0] == 0
    assert 0.1 < gate(unseen)[1] < 0.7
    assert gate(unseen)[2] == 1
