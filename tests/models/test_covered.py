"""Coverings are noticed on real faces, and ordinary faces are not taken for covered."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.alignment import align
from models.covered import AREAS, covered_share, statistics
from models.quality import QUALITY_TEMPLATE
from tests.coverings import cover
from tests.portraits import Pixels, jpeg, portrait

LANDMARKS = np.array(
    [[204.8, 101.5], [247.5, 103.9], [225.5, 129.2], [201.1, 139.8], [245.7, 142.1]]
)  # in portrait(512)
BEFORE_THE_MOUTH = (
    "surgical mask", "mask below the nose", "patterned mask", "scarf", "hand before the mouth", "bar over the mouth",
)  # fmt: skip


def aligned(*pictures: Pixels, landmarks: np.ndarray = LANDMARKS) -> torch.Tensor:
    """Crops of pictures whose faces have these landmarks."""
    photos = [torch.from_numpy(pixels.copy()) for pixels in pictures]
    points = torch.from_numpy(landmarks).float().expand(len(photos), 5, 2)
    transforms = QUALITY_TEMPLATE.transforms(torch.zeros(len(photos), 4), points)
    return align(photos, transforms, torch.arange(len(photos)), QUALITY_TEMPLATE.size)


def covered(kind: str, seeds: int = 5) -> torch.Tensor:
    """Shares covered of the portrait with coverings of this kind."""
    return covered_share(
        aligned(*(cover(portrait(512), LANDMARKS, kind, np.random.default_rng(seed)) for seed in range(seeds)))
    )


@pytest.mark.parametrize("kind", BEFORE_THE_MOUTH)
def test_what_lies_before_the_mouth_covers_up_to_three_fifths_of_a_face(kind: str) -> None:
    shares = covered(kind)
    assert shares.median() == pytest.approx(0.6)
    assert (shares > 0.1).all()


@pytest.mark.parametrize("kind", ["bar over the eyes", "hand before the eyes"])
def test_covered_eyes_are_noticed(kind: str) -> None:
    assert covered(kind).min() >= 0.4


def test_a_bare_face_is_not_covered_in_color_grey_dark_mirrored_small_or_as_poor_jpeg() -> None:
    photo = portrait(512)
    grey = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    poor = np.asarray(Image.open(io.BytesIO(jpeg(photo, quality=40))))
    small = np.asarray(Image.fromarray(photo).resize((200, 200)).resize((512, 512)))
    pictures = aligned(photo, grey, photo // 3, poor, small)
    assert covered_share(torch.cat([pictures, pictures.flip(2)])).tolist() == [0] * 10


def test_no_faces_have_no_share() -> None:
    assert covered_share(torch.zeros(0, 256, 256, 3, dtype=torch.uint8)).shape == (0,)


def test_a_picture_of_nothing_is_no_error() -> None:
    shares = covered_share(torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
    assert 0 <= shares.item() <= 1


def test_thresholds_are_within_what_ordinary_faces_reach() -> None:
    for name in AREAS:
        area = statistics()[name]
        assert (area.low < area.high).all()
        torch.testing.assert_close(area.typical.norm(dim=1), torch.ones(len(area.typical)), atol=1e-3, rtol=0)
