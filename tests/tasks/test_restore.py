"""Restoration is judged, not trusted: where it looks, what it may change, and what it says of itself."""

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from torch import Tensor

from infra.settings import Settings
from models.alignment import align
from models.spec import Preprocess
from models.template import ARCFACE_112, FACEXLIB_512
from tasks.align import align_faces
from tasks.assess import assess
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import Embed
from tasks.execution import guard
from tasks.execution.guard import set_time_limit
from tasks.execution.restorer import Restorer
from tasks.images.mark import LABEL, labelled, marked_png
from tasks.model_version import ModelVersion, load_network
from tasks.photo_faces import (
    BOXES,
    EMBEDDING,
    FIDELITY,
    IDENTITY_SIMILARITY,
    LANDMARKS,
    REPEATED,
    RESTORED,
    RESTORED_EMBEDDING,
    RESTORED_FACES,
    RESTORED_SHARPNESS,
    TO_RESTORE,
    PhotoFaces,
    crop,
    quality_part,
    restored_crop,
)
from tasks.recipe import Recipe, current_recipe
from tasks.restore import MIN_FIDELITY, Restore, fidelity, judge
from tests.portraits import Pixels, jpeg, landscape, mirrored, portrait

LIMITS = DecodeLimits(max_bytes=10**7, max_megapixels=10)


@pytest.fixture(scope="module")
def recipe(weights_dir: Path, tracking_uri: str) -> Recipe:
    return current_recipe(Settings(weights=weights_dir, tracking_uri=tracking_uri), frozenset())


@pytest.fixture(scope="module")
def detect(recipe: Recipe) -> Detect:
    return Detect(recipe.detector, "cpu")


def prepared(detect: Detect, recipe: Recipe, *pictures: Pixels) -> list[PhotoFaces]:
    """Photos as they come to the restorer."""
    items = []
    for i, data in enumerate(map(jpeg, pictures)):
        picture = decode(data, LIMITS, long_side=1280)
        photo = PhotoFaces(i, f"{i}.jpg", len(data), content_id=i, width=picture.width, height=picture.height)
        items.append(Decoded(photo, picture, data))
    found = detect(items)
    return assess([align_faces(item, LIMITS, recipe.templates) for item in found], recipe)


@pytest.fixture(scope="module")
def small(detect: Detect, recipe: Recipe) -> PhotoFaces:
    """A photo with one face that is too small to be kept as it is."""
    return prepared(detect, recipe, mirrored(200))[0]


@pytest.fixture(scope="module")
def restorer(recipe: Recipe) -> Restore:
    assert recipe.restorer is not None
    assert recipe.embedder.spec.preprocess is not None
    return Restore(recipe.restorer, recipe.embedder.spec.preprocess.template, "cpu")


@pytest.fixture(scope="module")
def restored(restorer: Restore, small: PhotoFaces) -> PhotoFaces:
    (photo,) = restorer([small])
    assert photo.failure is None
    return photo


# --- which faces, in which view


def test_only_faces_that_need_it_are_sent_and_their_view_is_kept_for_them_alone(detect: Detect, recipe: Recipe) -> None:
    assert recipe.restorer is not None
    assert recipe.restorer.spec.preprocess is not None
    view = crop(recipe.restorer.spec.preprocess.template)
    large, small, none = prepared(detect, recipe, portrait(600), mirrored(200), landscape())
    assert [RESTORED_FACES in photo.arrays for photo in (large, small, none)] == [False, True, False]
    assert small.arrays[TO_RESTORE].shape == (1, 96, 96, 3)
    assert not any(view in photo.arrays for photo in (large, small, none))  # what nobody looks at does not travel


def test_a_view_that_another_model_shares_with_the_restorer_keeps_every_face(detect: Detect, recipe: Recipe) -> None:
    assert recipe.restorer is not None
    assert recipe.restorer.spec.preprocess is not None
    template = recipe.restorer.spec.preprocess.template
    (describer,) = recipe.describers
    assert describer.spec.preprocess is not None
    seeing_the_same = replace(describer.spec.preprocess, template=template)
    shared = replace(recipe, describers=(replace(describer, spec=replace(describer.spec, preprocess=seeing_the_same)),))
    side_by_side = np.zeros((600, 850, 3), np.uint8)
    side_by_side[:600, :600] = portrait(600)
    side_by_side[:200, 620:820] = mirrored(200)
    for photo in prepared(detect, shared, side_by_side, portrait(600)):
        assert len(photo.arrays[crop(template)]) == photo.face_count >= 1
        rows = photo.arrays.get(RESTORED_FACES, [])
        assert len(rows) < photo.face_count
        if len(rows):
            np.testing.assert_array_equal(photo.arrays[TO_RESTORE], photo.arrays[crop(template)][rows])


# --- what comes back


def test_restored_crop_lies_where_the_original_one_does(
    restored: PhotoFaces, restorer: Restore, small: PhotoFaces
) -> None:
    """A pixel aside costs correlation: the same crop moved by one pixel of 150 is less like it."""
    original = small.arrays[crop(restorer.embed_template)][0].astype(np.float64)
    again = restored.arrays[restored_crop(restorer.embed_template)][0].astype(np.float64)
    assert again.shape == original.shape

    def likeness(dx: int, dy: int) -> float:
        moved = np.roll(again, (dy, dx), axis=(0, 1))[8:-8, 8:-8]
        return float(np.corrcoef(moved.ravel(), original[8:-8, 8:-8].ravel())[0, 1])

    here = likeness(0, 0)
    assert here > 0.97
    assert here == max(likeness(dx, dy) for dx in (-2, -1, 0, 1, 2) for dy in (-2, -1, 0, 1, 2))


def test_restored_face_is_four_times_as_large_sharper_and_true_to_the_photo(
    restored: PhotoFaces, small: PhotoFaces
) -> None:
    pixels = restored.arrays[RESTORED]
    assert pixels.shape == (1, 384, 384, 3)
    assert pixels.dtype == np.uint8
    enlarged = PillowImage.fromarray(small.arrays[TO_RESTORE][0]).resize((384, 384), PillowImage.Resampling.BICUBIC)

    def sharpness(picture: np.ndarray) -> float:
        return float(np.abs(np.diff(picture.mean(axis=2), n=2, axis=0)).mean())

    assert sharpness(pixels[0].astype(float)) > 1.2 * sharpness(np.asarray(enlarged, float))
    assert restored.arrays[FIDELITY][0] > MIN_FIDELITY
    assert restored.arrays[RESTORED_SHARPNESS][0] > 1.2 * small.arrays[quality_part("sharpness")][0]
    assert not restored.arrays[REPEATED].any()


def test_embedding_is_that_of_the_photographed_face_whether_or_not_it_was_restored(
    restored: PhotoFaces, small: PhotoFaces, recipe: Recipe
) -> None:
    embed = Embed(recipe.embedder, "cpu")
    ((plain,), (judged,)) = embed([small]), embed([restored])
    np.testing.assert_allclose(judged.arrays[EMBEDDING], plain.arrays[EMBEDDING], atol=1e-5)
    assert 0.9 < judged.arrays[IDENTITY_SIMILARITY][0] < 0.9999  # the same person, other pixels
    similarity = judged.arrays[RESTORED_EMBEDDING][0] @ judged.arrays[EMBEDDING][0]
    assert similarity == pytest.approx(judged.arrays[IDENTITY_SIMILARITY][0], abs=1e-5)


def test_restoring_does_not_depend_on_the_neighbours_in_the_batch(
    restorer: Restore, restored: PhotoFaces, small: PhotoFaces, detect: Detect, recipe: Recipe
) -> None:
    large, other = prepared(detect, recipe, portrait(600), portrait(180))
    results = restorer([large, other, replace(small, image_id=7)])
    assert [photo.image_id for photo in results] == [0, 1, 7]
    assert RESTORED not in results[0].arrays
    difference = results[2].arrays[RESTORED].astype(int) - restored.arrays[RESTORED]
    assert np.abs(difference).max() <= 1


class Poisoned(torch.nn.Module):
    """A network that breaks on one of its inputs: what comes out of damaged weights or an overflow."""

    def __init__(self, network: torch.nn.Module, bad: Tensor) -> None:
        super().__init__()
        self.network, self.bad = network, bad

    def forward(self, faces: Tensor) -> Tensor:
        enlarged = torch.nn.functional.interpolate(faces, scale_factor=4)
        spoilt = (faces - self.bad).abs().amax(dim=(1, 2, 3)) < 1e-6
        enlarged[spoilt, :, 0, 0] = torch.nan
        return enlarged


def test_an_output_that_is_not_finite_is_a_failure_and_never_passed_off_as_restored(
    restorer: Restore, small: PhotoFaces, detect: Detect, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = prepared(detect, recipe, portrait(180))
    assert restorer.restorer.spec.preprocess is not None
    bad = restorer.restorer.spec.preprocess(torch.tensor(small.arrays[TO_RESTORE]))
    monkeypatch.setattr(restorer.restorer, "network", Poisoned(restorer.restorer.network, bad))
    good, failed = restorer([replace(other, image_id=1), replace(small, image_id=2)])
    assert good.failure is None
    assert RESTORED in good.arrays
    assert failed.failure is not None
    assert (failed.failure.stage, failed.failure.retryable) == ("restore", True)
    assert "real-esrgan-x4plus gave values that are not finite" in failed.failure.message
    assert failed.arrays == {}


class Slow(torch.nn.Module):
    """A network that takes its time for each face, and remembers how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.faces = 0

    def forward(self, faces: Tensor) -> Tensor:
        self.faces += len(faces)
        time.sleep(0.8 * len(faces))
        return torch.nn.functional.interpolate(faces, scale_factor=4)


def test_photos_that_only_together_take_longer_than_one_may_are_restored_once(
    restorer: Restore, small: PhotoFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(restorer.restorer, "network", slow)
    monkeypatch.setattr(guard, "_clock", guard._Clock())
    set_time_limit(2.0)
    results = restorer([replace(small, image_id=number) for number in range(3)])
    assert all(RESTORED in photo.arrays for photo in results)
    assert slow.faces == 3


class Bright(torch.nn.Module):
    """A network whose inner values fit into float32 and, for bright faces, not into half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (torch.nn.Conv2d(3, 3, 1, bias=False) for _ in range(2))
        self.up.weight.data = torch.full((3, 3, 1, 1), 3e4)
        self.down.weight.data = torch.eye(3)[:, :, None, None] / 9e4
        self.requires_grad_(False)

    def forward(self, faces: Tensor) -> Tensor:
        return self.down(self.up(faces))


class Reddening(torch.nn.Module):
    """Gives back what it gets, with more red."""

    def forward(self, faces: Tensor) -> Tensor:
        return faces + torch.tensor([0.1, 0.0, 0.0])[:, None, None]


def test_a_face_that_overflows_half_precision_is_repeated_in_float32_and_says_so(restorer: Restore) -> None:
    version = restorer.restorer.version
    stub = Restorer.__new__(Restorer)
    vars(stub).update(vars(restorer.restorer), spec=replace(version.spec, scale=1), network=Bright(), half=True)
    crops = torch.full((6, 96, 96, 3), 20, dtype=torch.uint8)
    crops[4] = 250
    restored = stub(crops, torch.zeros(6, 5, 2))
    assert restored.repeated.tolist() == [False, False, False, False, True, False]
    assert (restored.pixels.int() - crops.int()).abs().max() <= 1
    stub.half = False
    assert not stub(crops, torch.zeros(6, 5, 2)).repeated.any()


def test_a_grey_face_stays_grey_and_no_faces_are_none(restorer: Restore, small: PhotoFaces) -> None:
    crops = torch.tensor(small.arrays[TO_RESTORE])
    grey = crops.float().mean(dim=3, keepdim=True).byte().expand(-1, -1, -1, 3)
    pixels = restorer.restorer(grey, torch.zeros(1, 5, 2)).pixels
    assert torch.equal(pixels, pixels[..., :1].expand_as(pixels))
    assert pixels.float().std() > 20
    assert restorer.restorer(crops[:0], torch.zeros(0, 5, 2)).pixels.shape == (0, 384, 384, 3)


def test_a_grey_face_stays_grey_where_the_template_lays_another_colour_beyond_the_border(restorer: Restore) -> None:
    stub = Restorer.__new__(Restorer)
    spec, template = replace(restorer.restorer.spec, scale=1), replace(FACEXLIB_512, size=96)
    vars(stub).update(vars(restorer.restorer), spec=spec, template=template, network=Reddening(), half=False)
    grey = torch.arange(96, dtype=torch.uint8).mul(2)[:, None, None].expand(96, 96, 3).contiguous()
    half_outside = torch.tensor([[[1.0, 0, -48.5], [0, 1, 0]]])  # by half a pixel: there the colours mix
    crops = align([grey, grey.roll(9, dims=2)], half_outside.expand(2, 2, 3), torch.arange(2), 96, template.fill)
    assert (crops[..., 0] != crops[..., 2]).any()
    coloured = crops.clone()
    coloured[:, 0, 90, 0] += 1  # red, which the fill lacks
    pixels = stub(torch.cat([crops[:1], coloured[:1]]), torch.zeros(2, 5, 2)).pixels
    assert torch.equal(pixels[0], pixels[0, ..., :1].expand_as(pixels[0]))
    assert not torch.equal(pixels[1], pixels[1, ..., :1].expand_as(pixels[1]))


def test_other_models_see_black_beyond_the_border_whatever_the_restorer_made_of_it(restorer: Restore) -> None:
    points = torch.tensor(FACEXLIB_512.points) * 0.2 - torch.tensor([40.0, 0.0])
    arrays = {BOXES: np.array([[0, 30, 40, 90]], np.float32), LANDMARKS: points[None].numpy()}
    photo = PhotoFaces(0, "cut.jpg", 1, width=100, height=110).having(**arrays, **{RESTORED_FACES: np.array([0])})
    size = restorer.restorer.template.size * restorer.restorer.spec.scale
    seen = restorer.seen_as(ARCFACE_112, photo, torch.full((1, size, size, 3), 200, dtype=torch.uint8))
    transforms = ARCFACE_112.transforms(torch.tensor(arrays[BOXES]), torch.tensor(arrays[LANDMARKS]))
    plain = align([torch.full((110, 100, 3), 200, dtype=torch.uint8)], transforms, torch.tensor([0]), 112)
    assert 0.2 < (plain == 0).float().mean() < 0.8
    differ = (seen.int() - plain.int()).abs() > 1
    assert differ.float().mean() < 0.02  # the pixels that the border runs through
    assert (seen[plain == 0] == 0).all()


def test_an_all_black_crop_and_one_of_noise_come_back_finite(restorer: Restore) -> None:
    black = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    assert restorer.restorer(black, torch.zeros(1, 5, 2)).pixels.max() < 30


# --- how it is judged


def crops(values: Sequence[Any], size: int = 8) -> Tensor:
    return torch.tensor(np.array(values, np.uint8)).reshape(-1, 1, 1, 1).expand(-1, size, size, 3).contiguous()


def test_fidelity_is_the_peak_signal_to_noise_ratio_in_decibels() -> None:
    assert fidelity(crops([100]), crops([110], 32))[0] == pytest.approx(20 * np.log10(255 / 10))
    assert fidelity(crops([0]), crops([255], 32))[0] == pytest.approx(0)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_fidelity_falls_with_the_distance_and_knows_no_sign(start: int, near: int, far: int) -> None:
    near, far = sorted((near, far), key=lambda value: abs(value - start))
    closer, farther = fidelity(crops([start, start]), crops([near, far], 32))
    assert closer >= farther
    assert fidelity(crops([near]), crops([start], 32))[0] == pytest.approx(float(closer))


def test_fidelity_forgives_detail_that_vanishes_when_made_small_again() -> None:
    checks = torch.tensor(np.indices((32, 32)).sum(axis=0) % 2 * 60 + 98).byte()[None, :, :, None].expand(-1, -1, -1, 3)
    assert fidelity(crops([128]), checks)[0] > 60


def test_fidelity_judges_each_face_alone() -> None:
    both = fidelity(crops([10, 200]), crops([20, 200], 16))
    assert both[0] == pytest.approx(fidelity(crops([10]), crops([20], 16))[0])
    assert both[1] > 70  # equal, and finite all the same


def test_judgement_gives_the_reason_with_its_numbers() -> None:
    assert judge(MIN_FIDELITY, 0.2, 0.3, 0.93, 0.93) == ""
    assert judge(30.0, 0.2, 0.3, 0.99, 0.93) == ""
    assert judge(20.04, 0.2, 0.3, 0.99, 0.93).startswith("fidelity 20.0 dB is under 23")
    assert judge(30.0, 0.2, 0.3, 0.5, 0.93).startswith("identity similarity 0.50 is under 0.93")
    assert judge(30.0, 0.3, 0.3, 0.99, 0.93).startswith("sharpness 0.30 is not above the photo's 0.30")
    assert judge(30.0, 0.2, 0.3, 0.99, None).startswith("identity not judged")
    assert "fidelity" in judge(10.0, 0.3, 0.2, 0.1, 0.93)  # the first reason is enough


def test_a_restored_picture_says_in_itself_that_it_is_invented(restored: PhotoFaces, restorer: Restore) -> None:
    pixels = restored.arrays[RESTORED][0]
    picture = PillowImage.open(io.BytesIO(marked_png(pixels, restorer.restorer.version)))
    assert picture.format == "PNG"
    shown = np.asarray(picture)
    np.testing.assert_array_equal(shown[:350], pixels[:350])  # above the label nothing changes
    np.testing.assert_array_equal(shown[:, 200:], pixels[:, 200:])
    band = shown[362:380, 4:120].astype(int)
    assert band.min() < 60  # dark ground
    assert (band.min(axis=2) > 200).mean() > 0.05  # white letters
    assert "Synthetic detail: invented by real-esrgan-x4plus 1, not photographed." in str(picture.info["Description"])
    assert picture.info["Software"] == "Visage, real-esrgan-x4plus 1"
    packet = ElementTree.fromstring(picture.info["XML:com.adobe.xmp"])
    (facts,) = [{name.rpartition("}")[2]: value for name, value in node.attrib.items()} for node in packet[0]]
    assert (facts["Model"], facts["Version"]) == ("real-esrgan-x4plus", "1")
    assert facts["DigitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    assert "Synthetic detail" in facts["Content"]


@pytest.mark.parametrize("side", [64, 128, 512, 1500])
def test_the_label_fits_into_every_size(side: int) -> None:
    white = np.full((side, side, 3), 255, np.uint8)
    changed = np.flatnonzero((labelled(white) != white).any(axis=(0, 2)))
    assert len(changed)
    assert changed.max() < side
    assert LABEL == "synthetic detail"


def test_weights_are_the_released_ones(recipe: Recipe) -> None:
    assert recipe.restorer is not None
    assert sum(p.numel() for p in load_network(recipe.restorer).parameters()) == 16_697_987


def test_preprocess_is_undone(restorer: Restore) -> None:
    version: ModelVersion = restorer.restorer.version
    assert version.spec.preprocess is not None
    odd = Preprocess(version.spec.preprocess.template, version.spec.preprocess.color, (10.0, 20.0, 30.0), (50.0,) * 3)
    pixels = torch.arange(2 * 96 * 96 * 3).remainder(256).byte().reshape(2, 96, 96, 3)
    stub = Restorer.__new__(Restorer)
    facts = {"spec": replace(version.spec, preprocess=odd, scale=1), "network": torch.nn.Identity()}
    vars(stub).update({**vars(restorer.restorer), **facts})
    assert torch.equal(stub(pixels, torch.zeros(2, 5, 2)).pixels, pixels)
