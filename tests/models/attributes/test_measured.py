"""What is measured without learning, on real faces and on pictures whose answer is known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.attributes.measured import MEASURED, color, measured, visible_share
from models.checkpoint import CheckpointMismatch
from models.quality import assess_quality
from models.spec import Kind
from models.vocabulary import ATTRIBUTES, COLOR
from tests.portraits import portrait

FACE = torch.tensor([[40.0, 40], [80, 40], [60, 60], [45, 85], [75, 85]])


def stored_as_jpeg(pixels: np.ndarray, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


def toned(pixels: np.ndarray) -> np.ndarray:
    """The picture as a sepia print: a colour for each luma, black and white stay so."""
    luma = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    return (255 * np.stack([luma**0.8, luma, luma**1.3], axis=-1)).round().astype(np.uint8)


def test_color_photos_sepia_prints_and_grey_ones_are_told_apart_even_as_poor_jpeg() -> None:
    photo = portrait(256)
    grey = np.repeat((photo @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=2).round().astype(np.uint8)
    for quality in (40, 75, 95):
        crops = torch.stack([stored_as_jpeg(picture, quality) for picture in (grey, toned(photo), photo)])
        assert [COLOR.classes[i] for i in color(crops)] == ["grey", "toned", "color"], quality


def test_what_lies_beyond_the_border_speaks_for_no_color() -> None:
    cut = torch.from_numpy(portrait(256).copy())
    cut[:, 100:] = 0
    assert COLOR.classes[int(color(cut[None]))] == "color"
    assert COLOR.classes[int(color(torch.zeros(1, 256, 256, 3, dtype=torch.uint8)))] == "grey"


def test_a_face_is_seen_less_the_farther_it_is_turned_and_cut() -> None:
    none = torch.zeros(5)
    turned = visible_share(torch.tensor([0.0, 29, 45, 75, 95]), none, none, none)
    assert turned[:2].tolist() == [1, 1]
    assert (turned[1:].diff() < 0).all()
    assert turned[4] == 0
    none = torch.zeros(1)
    assert visible_share(torch.tensor([-60.0]), torch.tensor([20.0]), none, none) < 0.6
    assert visible_share(none, none, torch.tensor([0.25]), none).item() == pytest.approx(0.75)


def test_what_is_cut_off_and_covered_counts_once() -> None:
    none = torch.zeros(2)
    visible = visible_share(none, none, torch.tensor([0.25, 0.25]), torch.tensor([0.6, 0.1]))
    torch.testing.assert_close(visible, torch.tensor([0.4, 0.75]))


def test_every_measure_is_of_the_vocabulary_has_a_unit_and_claims_no_confidence() -> None:
    crops = torch.from_numpy(portrait(256).copy())[None]
    quality = assess_quality(crops, FACE[None], torch.ones(1))
    found = measured(quality, crops, torch.tensor([0.1]))
    assert found.keys() == {attribute.name for attribute in MEASURED.attributes}
    for attribute in MEASURED.attributes:
        assert ATTRIBUTES[attribute.name] == attribute
        assert not attribute.sensitive
        assert attribute.kind.unit
        assert found[attribute.name].value.shape == (1,)
        assert found[attribute.name].confidence.isnan().all()
    assert found["inter_eye_distance"].value.item() == pytest.approx(40)
    assert found["sharpness"].value == quality.sharpness  # computed once
    assert 0.2 < found["brightness"].value < 0.8


def test_no_faces_give_no_measures() -> None:
    crops = torch.zeros(0, 256, 256, 3, dtype=torch.uint8)
    quality = assess_quality(crops, torch.zeros(0, 5, 2), torch.zeros(0))
    assert all(len(estimate.value) == 0 for estimate in measured(quality, crops, torch.zeros(0)).values())


def test_there_is_nothing_to_load() -> None:
    with pytest.raises(CheckpointMismatch, match="computed from pixels"):
        MEASURED.build({})


def test_units_follow_from_what_a_value_is() -> None:
    assert {kind.value: kind.unit for kind in Kind} == {
        "probability": "0..1", "probabilities": "0..1", "fraction": "0..1", "years": "years", "degrees": "degrees",
        "pixels": "pixels", "category": "class", "mask": "class", "points": "pixels",
    }  # fmt: skip
