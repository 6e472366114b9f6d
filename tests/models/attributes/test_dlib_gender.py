"""Gender against onnxruntime on the released file."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.attributes.dlib_gender import DLIB_GENDER, interpret
from models.vocabulary import GENDER
from tests.models.bundled import assert_close, golden, seeded_crops


@pytest.fixture(scope="module")
def network(bundled: Callable[[str], nn.Module]) -> nn.Module:
    return bundled("dlib-gender")


def logits(network: nn.Module, crops: Tensor) -> Tensor:
    assert DLIB_GENDER.preprocess is not None
    with torch.inference_mode():
        return network(DLIB_GENDER.preprocess(crops))


def test_logits_and_probabilities_are_onnxruntime_s(network: nn.Module) -> None:
    stored = golden("dlib_gender")
    found = logits(network, seeded_crops(stored))
    assert_close(found, stored["logits"])
    gender = interpret(found)["gender"]
    assert gender.probabilities is not None
    assert_close(gender.probabilities, stored["probabilities"])


def test_the_first_output_means_female() -> None:
    gender = interpret(torch.tensor([[3.0, -3.0], [-3.0, 3.0]]))["gender"]
    assert [GENDER.classes[i] for i in gender.value.tolist()] == ["female", "male"]
    assert gender.confidence.tolist() == pytest.approx([0.9975274] * 2)


def test_gender_does_not_depend_on_batch_neighbours(network: nn.Module) -> None:
    crops = seeded_crops(golden("dlib_gender"))
    alone = torch.cat([logits(network, crop[None]) for crop in crops])
    assert_close(logits(network, crops), alone.numpy())
