"""What the tests of the bundled models share: golden files of the original engines, and their inputs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.reference import seeded, shared

TOLERANCE = 1e-4  # as the references state


def golden(model: str) -> Mapping[str, np.ndarray]:
    """Return the original engine's outputs for seeded pictures, by name."""
    with np.load(shared(f"reference/bundled/{model}/golden_seeded.npz")) as arrays:
        return {name: arrays[name] for name in arrays.files}


def golden_faces(model: str) -> list[dict[str, Any]]:
    """Return what the original engine says of faces in the shared photos."""
    faces: list[dict[str, Any]] = json.loads(
        shared(f"reference/bundled/{model}/golden_photos.json").read_text(encoding="utf-8")
    )["faces"]
    return faces


def seeded_crops(stored: Mapping[str, np.ndarray]) -> Tensor:
    """Return the golden file's pictures as crops (N, S, S, 3) uint8."""
    pictures = [seeded().seeded_image(str(name), int(stored["size"])) for name in stored["input_names"]]
    return (torch.cat(pictures) * 255).round().byte().permute(0, 2, 3, 1)


def photo(face: Mapping[str, Any]) -> Tensor:
    """Return the photo of a golden face, (H, W, 3) uint8, proven by its digest."""
    path = shared(f"data/photos/{face['photo']}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == face["photo_sha256"]
    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))


def assert_close(actual: Tensor, expected: np.ndarray | list[Any], tolerance: float = TOLERANCE) -> None:
    wanted = torch.as_tensor(np.asarray(expected))
    assert actual.shape == wanted.shape
    assert float((actual.double() - wanted.double()).abs().max()) < tolerance


def assert_taps(outputs: Mapping[str, Tensor], stored: Mapping[str, np.ndarray], renamed: Mapping[str, str]) -> None:
    """The intermediates called `renamed[tap]` agree with the golden taps in shape, mean, deviation and first values."""
    for tap, name in renamed.items():
        value = outputs[name]
        assert value.numel() == np.prod(stored[f"tap/{tap}/shape"]), tap
        flat = value.flatten(1) if stored[f"tap/{tap}/mean"].ndim else value.flatten()
        assert_close(flat[..., :16], stored[f"tap/{tap}/first16"])
        assert_close(flat.mean(dim=-1), stored[f"tap/{tap}/mean"])
