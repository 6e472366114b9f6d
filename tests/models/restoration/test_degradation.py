"""The degradation models against the released training code, and properties of what is drawn and applied."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.restoration.degradation import (
    CLASSIC,
    EXTENDED,
    Degradation,
    Pass,
    Window,
    component_boxes,
    degrade,
    draw,
    gaussian_kernel,
    target,
)
from tests.reference import seeded, shared

CASES = [f"restoreformer.seed{i}" for i in range(3)] + [f"restoreformerpp.default.seed{i}" for i in range(3)]
CASES += ["restoreformerpp.all_but_gray.seed0", "restoreformerpp.all.seed1"]
COMPONENTS = torch.tensor([[192.5, 240.25, 21], [318, 240, 22.5], [257, 371, 34]])
MILD = Pass(half_kernel=20, sigma=(2.0, 2.0), rotation=0.0, haze=1.0, factor=2.0, noise=5.0, noise_seed=7, quality=90.0)


@cache
def golden() -> Any:
    return np.load(shared("reference/degradation/golden.npz"))


@cache
def clean() -> Tensor:
    return (seeded().seeded_image("golden-0", 512)[0] * 255).round() / 255


@cache
def texture() -> Tensor:
    """A face-sized picture with detail at every scale, so that each degradation takes something away."""
    torch.manual_seed(0)
    parts = [
        torch.nn.functional.interpolate(torch.rand(1, 3, n, n), 128, mode="bicubic")[0] for n in (8, 16, 32, 64, 128)
    ]
    return torch.stack(parts).mean(dim=0).clamp(0, 1)


class Replay:
    """Walks through the official code's recorded draws, with the generator beside it for the noise, which is not recorded."""

    def __init__(self, item: str) -> None:
        self.draws = iter(json.loads(shared("reference/degradation/draws.json").read_text())["draws"][item])
        self.numpy = np.random.RandomState(int(item[-1]))
        self.noise: list[Tensor] = []

    def next(self, function: str) -> Any:
        recorded, arguments, *result = next(self.draws)
        assert recorded.endswith(function)
        if recorded.startswith("np."):
            value = getattr(self.numpy, function)(*arguments)
            if function == "randn":  # height, width, blue-green-red
                self.noise.append(torch.from_numpy(value[..., ::-1].transpose(2, 0, 1).astype(np.float32)))
            else:
                assert value == pytest.approx(result[0])
        return result[0] if result else None

    def one_pass(self, haze: float) -> Pass:
        half_kernel = self.next("randint")
        anisotropic = self.next("choices") == ["aniso"]
        first = self.next("uniform")
        second, rotation = (self.next("uniform"), self.next("uniform")) if anisotropic else (first, 0.0)
        left = self.next("uniform") if haze and self.next("uniform") < haze else 1.0
        factor, noise, _ = self.next("uniform"), self.next("uniform"), self.next("uniform")
        self.next("randn")
        return Pass(half_kernel, (first, second), rotation, left, factor, noise, 0, self.next("uniform"))

    def degradation(self, shift: float, haze: float, uneven: float, grey: float) -> Degradation:
        extended = shift > 0
        flip = self.next("random") < 0.5
        moved = (0, 0)
        if extended and self.next("uniform") < shift:
            moved = (32 - self.next("randint"), 32 - self.next("randint"))
        two = extended and self.next("uniform") < uneven
        passes = tuple(self.one_pass(haze) for _ in range(2 if two else 1))
        window = Window(self.next("randint"), self.next("randint"), self.next("randint")) if two else None
        loses_colour = grey > 0 and self.next("uniform") < grey
        assert next(self.draws, None) is None
        return Degradation(flip, moved, passes, window, loses_colour)


def replayed(item: str) -> tuple[Degradation, list[Tensor]]:
    probabilities = {"shift": 0.2, "haze": 0.008, "uneven": 0.1, "grey": 0.008}
    if item.startswith("restoreformer."):
        probabilities = dict.fromkeys(probabilities, 0.0)
    elif "all" in item:
        probabilities = {"shift": 1.0, "haze": 1.0, "uneven": 1.0, "grey": float("gray" not in item)}
    replay = Replay(item)
    return replay.degradation(**probabilities), replay.noise


@pytest.mark.parametrize("item", CASES)
def test_the_official_draws_give_the_official_face(item: str) -> None:
    degradation, noise = replayed(item)
    degraded, wanted = degrade(clean(), degradation, noise), target(clean(), degradation)
    np.testing.assert_allclose(wanted[:, ::8, ::8], golden()[f"{item}.gt_sub"], atol=1e-6)
    difference = (degraded[:, ::8, ::8] * 255 - torch.from_numpy(golden()[f"{item}.lq_sub"])).abs()
    assert difference.max() <= 3  # grey levels: rounding before, and another JPEG codec
    assert difference.mean() < 0.01
    for image, name in ((degraded, "lq"), (wanted, "gt")):
        normalised = image * 2 - 1
        assert normalised.mean().item() == pytest.approx(golden()[f"{item}.{name}_mean"], abs=1e-4)
        assert normalised.std().item() == pytest.approx(golden()[f"{item}.{name}_std"], abs=1e-4)


@pytest.mark.parametrize("item", CASES)
def test_components_move_with_the_face(item: str) -> None:
    boxes = component_boxes(COMPONENTS, replayed(item)[0])
    for box, name in zip(boxes, ("left_eye", "right_eye", "mouth"), strict=True):
        np.testing.assert_allclose(box, golden()[f"{item}.loc_{name}"], atol=1e-3)


@pytest.mark.parametrize(
    ("half", "sigma", "rotation", "key"),
    [(20, (3.7, 3.7), 0.0, "iso_41_sigma3.7"), (19, (6.0, 1.5), 0.6, "aniso_39_sx6_sy1.5_theta0.6")],
)
def test_kernels_are_the_official_ones(half: int, sigma: tuple[float, float], rotation: float, key: str) -> None:
    kernel = gaussian_kernel(half, sigma, rotation)
    centre = slice(half - 4, half + 5)
    np.testing.assert_allclose(kernel[centre, centre], golden()[f"kernel.{key}"], rtol=1e-9)
    assert kernel.sum().item() == pytest.approx(1)


def once(**changes: Any) -> Degradation:
    return Degradation(flip=False, shift=(0, 0), passes=(replace(MILD, **changes),), window=None, grey=False)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([64, 128]))
def test_drawn_degradations_stay_in_range_and_repeat_by_seed(seed: int, size: int) -> None:
    always = replace(EXTENDED, shift=1.0, haze=1.0, uneven=1.0, grey=0.5)
    degradation = draw(np.random.default_rng(seed), always, size)
    assert degradation == draw(np.random.default_rng(seed), always, size)
    assert max(map(abs, degradation.shift)) <= 32 * size // 512
    window = degradation.window
    assert window is not None
    assert window.side + max(window.top, window.left) <= size
    image = texture()[:, :size, :size]
    degraded = degrade(image, degradation)
    assert torch.equal(degraded, degrade(image, degradation))
    assert degraded.shape == image.shape
    assert degraded.min() >= 0
    assert degraded.max() <= 1
    torch.testing.assert_close(degraded * 255, (degraded * 255).round(), rtol=0, atol=1e-4)
    assert bool((degraded == degraded[:1]).all()) == degradation.grey


def test_classic_faces_are_only_flipped_beside_the_chain() -> None:
    drawn = [draw(np.random.default_rng(seed), CLASSIC) for seed in range(200)]
    assert {d.flip for d in drawn} == {True, False}
    assert all(d.shift == (0, 0) and d.window is None and not d.grey and d.passes[0].haze == 1 for d in drawn)
    isotropic = [d.passes[0].sigma[0] == d.passes[0].sigma[1] for d in drawn]
    assert 60 < sum(isotropic) < 140
    for name, (low, high) in {"factor": (0.8, 8), "noise": (0, 20), "quality": (60, 100)}.items():
        values = [getattr(d.passes[0], name) for d in drawn]
        assert low <= min(values) < low + (high - low) * 0.05
        assert high - (high - low) * 0.05 < max(values) <= high


def test_extended_faces_are_changed_as_often_as_published() -> None:
    drawn = [draw(np.random.default_rng(seed), EXTENDED) for seed in range(4000)]
    for seen, probability in [
        (sum(d.shift != (0, 0) for d in drawn), 0.2),
        (sum(d.window is not None for d in drawn), 0.1),
        (sum(d.grey for d in drawn), 0.008),
    ]:
        deviation = (4000 * probability * (1 - probability)) ** 0.5
        assert abs(seen - 4000 * probability) < 4 * deviation


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sigma", [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (8.0, 8.0)]),
        ("factor", [1.0, 2.0, 4.0, 8.0]),
        ("noise", [0.0, 5.0, 10.0, 20.0]),
        ("quality", [95.0, 80.0, 60.0, 30.0]),
        ("haze", [1.0, 0.9, 0.8, 0.7]),
    ],
)
def test_a_stronger_degradation_takes_more_away(name: str, values: list[Any]) -> None:
    gentle = {"sigma": (0.3, 0.3), "factor": 1.0, "noise": 0.0, "quality": 100.0}
    errors = [float((degrade(texture(), once(**gentle | {name: v})) - texture()).square().mean()) for v in values]
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[0]


def test_the_two_passes_of_an_uneven_face_meet_at_the_window() -> None:
    gentle, strong = replace(MILD, noise=0.0), replace(MILD, sigma=(9.0, 9.0), factor=6.0)
    window = Window(side=40, top=30, left=50)
    uneven = degrade(texture(), Degradation(False, (0, 0), (gentle, strong), window, grey=False))
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[30:70, 50:90] = True
    expected = torch.where(
        inside, degrade(texture(), once(noise=0.0)), degrade(texture(), replace(once(), passes=(strong,)))
    )
    assert torch.equal(uneven, expected)


def test_noise_differs_between_seeds_only() -> None:
    first, again, other = (degrade(texture(), once(noise_seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_smaller_crop_sees_the_same_blur_relative_to_the_face() -> None:
    large, small = (draw(np.random.default_rng(5), CLASSIC, size).passes[0] for size in (512, 64))
    assert small.sigma == pytest.approx(tuple(value / 8 for value in large.sigma))
    assert small.factor == large.factor


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 64, 32), "float tensor"),
        (torch.zeros(1, 64, 64), "float tensor"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), "float tensor"),
        (torch.full((3, 64, 64), 2.0), r"values in \[0, 1\]"),
        (torch.full((3, 64, 64), torch.nan), r"values in \[0, 1\]"),
    ],
)
def test_what_is_no_face_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade(image, once())


def test_a_window_needs_two_passes() -> None:
    with pytest.raises(ValueError, match="with a window has 2 passes, not 1"):
        Degradation(False, (0, 0), (MILD,), Window(4, 0, 0), grey=False)
