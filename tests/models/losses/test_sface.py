"""SFace's loss against the official code, and what it promises."""

import math

import numpy as np
import pytest
import torch

from models.losses.sface import SFace
from tests.reference import shared


@pytest.mark.parametrize("setting", ["default", "casia", "vggface2", "ms1mv2"])
def test_value_and_gradients_are_those_of_the_official_code(setting):
    with np.load(shared("reference/sface/golden_loss.npz")) as file:
        case = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}
    loss = SFace(16, 10, float(case[f"{setting}/a"]), float(case[f"{setting}/b"]))
    with torch.no_grad():
        loss.weight.copy_(case["class_weight"])
    embeddings = case["embeddings"].clone().requires_grad_()
    value = loss(embeddings, case["labels"])
    value.backward()
    torch.testing.assert_close(value, case[f"{setting}/loss"], rtol=1e-5, atol=0)
    for gradient, name in ((embeddings.grad, "grad_embeddings"), (loss.weight.grad, "grad_class_weight")):
        wanted = case[f"{setting}/{name}"]
        assert (gradient - wanted).abs().max() < 1e-4 * wanted.abs().max()


def gradient_at(angle: float, label: int) -> torch.Tensor:
    """The gradient of an embedding that lies `angle` radians from centre 0 and 2 - `angle` from centre 1, in a plane."""
    loss = SFace(2, 2)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[1.0, 0.0], [math.cos(2.0), math.sin(2.0)]]))
    embedding = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    loss(embedding, torch.tensor([label])).backward()
    return embedding.grad[0]


def test_close_sample_is_left_in_peace():
    # 0.3 from its class, 1.7 from the other: inside both limits (0.80 and 1.23)
    assert gradient_at(0.3, label=0).norm() < 1e-6


def test_far_sample_is_pulled_with_full_force():
    # 1.1 from its class: sigmoid(80 * 0.3) is 1, so that the pull is s * sin(1.1); 0.9 from the other: pushed by s * sin(0.9)
    assert float(gradient_at(1.1, label=0).norm()) == pytest.approx(64 * (math.sin(1.1) + math.sin(0.9)), rel=1e-4)
