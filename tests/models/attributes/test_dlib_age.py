"""Age and gender against onnxruntime on the released files."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from models.attributes.dlib_age import CONVOLUTIONS, DLIB_AGE, DlibAge, interpret, read
from models.dlib import padded_sum
from models.spec import CheckpointMismatch
from tests.models.bundled import assert_close, golden, seeded_crops


@pytest.fixture(scope="module")
def network(bundled: Callable[[str], nn.Module]) -> nn.Module:
    return bundled("dlib-age")


def logits(network: nn.Module, crops: Tensor) -> Tensor:
    assert DLIB_AGE.preprocess is not None
    with torch.inference_mode():
        return network(DLIB_AGE.preprocess(crops))


def exported(path: Path, **changes: torch.Tensor | None) -> Path:
    """Write an ONNX file of random weights in the released layout; `changes` replace tensors or drop them."""
    state = DlibAge().state_dict()
    tensors: dict[str, torch.Tensor | None] = {
        "layer_1_weights": state["fc.weight"].T,
        "layer_1_bias": state["fc.bias"],
    }
    for name, k in CONVOLUTIONS.items():
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        tensors |= {f"layer_{k}_weights": weight, f"layer_{k}_bias": bias}
        tensors |= {f"layer_{k - 1}_{what}": torch.rand(1, len(bias), 1, 1) for what in ("scale", "offset")}
    stored = [
        numpy_helper.from_array(t.contiguous().numpy(), name)
        for name, t in (tensors | changes).items()
        if t is not None
    ]
    path.write_bytes(helper.make_model(helper.make_graph([], "age", [], [], stored)).SerializeToString())
    onnx.load_model(path)
    return path


def test_logits_probabilities_and_age_are_onnxruntime_s(network: nn.Module) -> None:
    stored = golden("dlib_age")
    found = logits(network, seeded_crops(stored))
    assert_close(found, stored["logits"])
    assert_close(found.softmax(dim=1), stored["probabilities"])
    age = interpret(found)["age"]
    assert_close(age.value, stored["expected_age"])
    assert_close(age.confidence, stored["probabilities"].max(axis=1))


def test_a_sure_infant_is_a_quarter_of_a_year_old() -> None:
    sure = torch.full((2, 81), -100.0)
    sure[0, 0] = sure[1, 80] = 100.0
    age = interpret(sure)["age"]
    assert age.value.tolist() == [0.25, 80.0]
    assert age.confidence.tolist() == [1.0, 1.0]


def test_age_does_not_depend_on_batch_neighbours(network: nn.Module) -> None:
    crops = seeded_crops(golden("dlib_age"))
    alone = torch.cat([logits(network, crop[None]) for crop in crops])
    assert_close(logits(network, crops), alone.numpy())


def test_folded_convolution_computes_as_convolution_then_affine(tmp_path: Path) -> None:
    scale, offset = torch.rand(64) + 0.5, torch.rand(64)
    path = exported(
        tmp_path / "age.onnx", layer_51_scale=scale.view(1, 64, 1, 1), layer_51_offset=offset.view(1, 64, 1, 1)
    )
    tensors = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load_model(path).graph.initializer
    }
    x = torch.rand(1, 3, 64, 64)
    plain = torch.conv2d(x, tensors["layer_52_weights"], tensors["layer_52_bias"], stride=2)
    state = read({"age.onnx": path})
    folded = torch.conv2d(x, state["conv1.weight"], state["conv1.bias"], stride=2)
    torch.testing.assert_close(folded, plain * scale[:, None, None] + offset[:, None, None])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_25_bias": None}, r"age\.onnx: layer_25_bias is missing"),
        ({"layer_99_weights": torch.zeros(1)}, r"age\.onnx: nobody reads layer_99_weights"),
    ],
)
def test_file_with_other_tensors_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Tensor | None], reason: str
) -> None:
    with pytest.raises(CheckpointMismatch, match=reason):
        read({"age.onnx": exported(tmp_path / "age.onnx", **changes)})


def test_sum_of_different_maps_fills_up_at_the_end() -> None:
    total = padded_sum(torch.ones(1, 2, 1, 3), torch.ones(1, 1, 2, 2))
    assert total.tolist() == [[[[2, 2, 1], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]]]
