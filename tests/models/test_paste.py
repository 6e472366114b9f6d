"""Pasting restored faces back: nothing outside of a face changes, no seam, no shift of colour or place."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.alignment import align
from models.paste import enlarged, mask, paste
from models.template import BLACK, FACEXLIB_512, FFHQ_512, Rgb
from tests.portraits import portrait

FFHQ_96 = FFHQ_512.scaled("ffhq-96", 96)
SCALE = 4


def landmarks(x: float, y: float, eyes: float, degrees: float = 0.0) -> Tensor:
    """Five landmarks of a face with its eyes so far apart, around a point."""
    points = torch.tensor(FFHQ_512.points)
    points = (points - points.mean(dim=0)) * eyes / (points[1, 0] - points[0, 0])
    angle = torch.tensor(degrees).deg2rad()
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    return (points @ turn.T + torch.tensor([x, y]))[None]


def crop_and_transform(photo: Tensor, points: Tensor, fill: Rgb = BLACK) -> tuple[Tensor, Tensor]:
    """The crop as a perfect restorer gives it, four times as large as the restorer's input, and where it lies."""
    template = FFHQ_96.scaled("large", 96 * SCALE)
    transforms = template.transforms(torch.zeros(1, 4), points)
    return align([photo], transforms, torch.tensor([0]), template.size, fill), transforms


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Smooth enough that resampling it twice changes little."""
    sharp = torch.from_numpy(portrait(512).copy()).permute(2, 0, 1)[None].float()
    return torch.nn.functional.avg_pool2d(sharp, 5, 1, 2)[0].permute(1, 2, 0).round().byte()


@pytest.mark.parametrize("degrees", [0, 33])
def test_pasting_a_face_as_it_was_changes_next_to_nothing(photo: Tensor, degrees: float) -> None:
    crops, transforms = crop_and_transform(photo, landmarks(230, 150, 60, degrees))
    difference = (paste(photo, crops, transforms).int() - photo.int()).abs()
    assert difference.max() <= 16  # resampled twice, at the sharpest edges
    assert difference.float().mean() < 0.2


def test_pixels_outside_of_the_crop_stay_to_the_bit(photo: Tensor) -> None:
    crops, transforms = crop_and_transform(photo, landmarks(230, 150, 30))
    before = photo.clone()
    result = paste(photo, 255 - crops, transforms)
    corners = transforms[0].double() @ torch.tensor([[0.0, 383, 0, 383], [0, 0, 383, 383], [1, 1, 1, 1]]).double()
    x1, y1 = corners.amin(dim=1).floor().int().tolist()
    x2, y2 = (corners.amax(dim=1).ceil().int() + 1).tolist()
    changed = (result != photo).any(dim=2)
    assert changed.any()
    changed[y1:y2, x1:x2] = False
    assert not changed.any()
    assert torch.equal(photo, before)


def test_a_shift_of_colour_is_taken_back_and_detail_is_kept(photo: Tensor) -> None:
    crops, transforms = crop_and_transform(photo, landmarks(230, 150, 60))
    tinted = crops.float() * 0.9 + torch.tensor([20.0, 5.0, -10.0])
    stripes = 12.0 * torch.sign(torch.sin(torch.arange(384) * 2 * torch.pi / 12))
    result = paste(photo, (tinted + stripes[:, None]).clamp(0, 255).byte(), transforms)
    middle = (slice(110, 190), slice(190, 270))
    before, after = photo[middle].float(), result[middle].float()
    tint = (tinted[0].mean(dim=(0, 1)) - crops[0].float().mean(dim=(0, 1))).abs()
    assert tint.max() > 5
    assert (after.mean(dim=(0, 1)) - before.mean(dim=(0, 1))).abs().max() < 1.5
    assert (after - before).std() > 6  # the stripes


def test_there_is_no_seam_along_the_edge_of_a_pasted_crop(photo: Tensor) -> None:
    """The step from row to row across the crop's edge is no larger than it was in the photo."""
    flat = torch.full_like(photo, 120)
    _, transforms = crop_and_transform(flat, landmarks(256, 256, 60))
    noise = torch.randint(0, 256, (1, 384, 384, 3), generator=torch.Generator().manual_seed(0)).byte()
    result = paste(flat, noise, transforms).int()
    corners = transforms[0].double() @ torch.tensor([[0.0, 383], [0, 383], [1, 1]]).double()
    top, bottom = corners[1].round().int().tolist()
    for row in (top, bottom):
        assert (result[row - 2 : row + 3] - 120).abs().max() <= 2
    assert (result[256, 200:300] - 120).abs().max() > 20


@pytest.mark.parametrize("fill", [BLACK, FACEXLIB_512.fill])
def test_a_face_at_the_border_brings_nothing_from_beyond_it(photo: Tensor, fill: Rgb) -> None:
    bright = torch.full_like(photo, 200)
    for x, y in ((10, 256), (500, 256), (256, 5), (256, 508), (3, 3)):
        crops, transforms = crop_and_transform(bright, landmarks(x, y, 40), fill)
        assert (crops == torch.tensor(fill)).all(dim=3).any()  # what lies beyond
        softened = torch.nn.functional.avg_pool2d(crops.permute(0, 3, 1, 2).float(), 5, 1, 2).permute(0, 2, 3, 1)
        result = paste(bright, softened.byte(), transforms)
        assert result.min() >= 197


def test_faces_that_overlap_fade_into_each_other(photo: Tensor) -> None:
    points = torch.cat([landmarks(200, 200, 50), landmarks(280, 220, 50)])
    transforms = FFHQ_96.scaled("large", 384).transforms(torch.zeros(2, 4), points)
    crops = align([photo], transforms, torch.tensor([0, 0]), 384)
    difference = (paste(photo, crops, transforms).int() - photo.int()).abs()
    assert difference.float().mean() < 0.25


def test_in_an_enlarged_photo_faces_keep_their_place(photo: Tensor) -> None:
    crops, transforms = crop_and_transform(photo, landmarks(230, 150, 60))
    double = torch.nn.functional.interpolate(photo.permute(2, 0, 1)[None].float(), scale_factor=2, mode="bilinear")
    large = double[0].permute(1, 2, 0).round().byte()
    result = paste(large, crops, enlarged(transforms, 2))
    assert (result.int() - large.int()).abs().float().mean() < 0.6
    shifted = paste(large, crops, transforms * 2)  # as it would be if pixels were taken for points
    assert (shifted.int() - large.int()).abs().sum() > 1.15 * (result.int() - large.int()).abs().sum()


def test_a_crop_far_outside_of_the_photo_or_none_at_all_changes_nothing(photo: Tensor) -> None:
    crops, transforms = crop_and_transform(photo, landmarks(5000, 5000, 60))
    assert torch.equal(paste(photo, crops, transforms), photo)
    assert torch.equal(paste(photo, crops[:0], transforms[:0]), photo)
    with pytest.raises(ValueError, match="does not lead from a crop to a photo"):
        paste(photo, crops, torch.zeros(1, 2, 3))


def test_mask_is_whole_in_the_middle_nothing_at_the_edge_and_never_jumps() -> None:
    along = torch.linspace(-1, 1, 401)
    values = mask(along, torch.zeros(401))
    assert values[200] == 1
    assert values[0] == values[-1] == 0
    assert np.abs(np.diff(values.numpy())).max() < 0.05
    assert mask(torch.tensor([1.0]), torch.tensor([1.0])) == 0
