"""On a GPU nothing is computed elsewhere, proven without one.

PyTorch's device "meta" stands in for the GPU: shapes without values. What mixes it with the CPU is an error or noticed here,
and what asks it for a value (`.item()`, `nonzero`) is an error. A forward that passes can be recorded as a CUDA graph.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.alignment import View, align_views
from models.attributes.dlib_age import DlibAge
from models.attributes.dlib_gender import DlibGender
from models.attributes.mini_xception import MiniXception
from models.covered import covered_share
from models.detection.mtcnn import ONet, PNet, RNet
from models.quality import sharpness
from models.restoration.real_esrgan import RealEsrgan
from models.spec import Role
from models.table import MODELS
from models.template import ARCFACE_112, DLIB_64, FACEXLIB_512
from tests.models.attributes import golden as attributes
from tests.models.attributes.golden import seeded_checkpoint
from tests.models.recognition import golden, weights
from tests.models.recognition.weights import WEIGHTS, Weights, shaped, table

DEVICE = torch.device("meta")
DFDNET = "dfdnet"  # where it looks, it has to be told: its boxes come back to Python

DESCRIBERS: dict[str, Weights] = {
    "dlib-age": shaped(DlibAge),
    "dlib-gender": shaped(DlibGender),
    "mini-xception": shaped(MiniXception),
    "facexformer": lambda: seeded_checkpoint("facexformer"),
    "swinface": lambda: seeded_checkpoint("swinface"),
    **{
        f"faceptor-{variant}{part}": lambda table=table: seeded_checkpoint("faceptor", table)
        for variant, table in {
            "base": "state_dict_base.tsv",
            "full": "state_dict.tsv",
            "layer-attention": "state_dict_layer_attention.tsv",
            "naive": "state_dict_naive.tsv",
        }.items()
        for part in ("", "-dense")
    },
}
RESTORERS: dict[str, Weights] = {
    "real-esrgan-x4plus": shaped(RealEsrgan),
    "restoreformer": table("restoreformer/state_dict.tsv"),
    "restoreformer++": table("restoreformerpp/state_dict.tsv"),
}


class Elsewhere(TorchDispatchMode):
    """Notes the operations that read or make a tensor on any other device than the stand-in for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        if any(tensor.device != DEVICE for tensor in tensors):
            self.operations.append(str(operation))
        return output


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference's layouts be filled with nothing, instead of seeded values, which take seconds."""

    def state_dict(layout: Path) -> dict[str, Tensor]:
        with layout.open(newline="") as rows:
            shapes = {
                row["key"]: row["shape"]
                for row in csv.DictReader(rows, delimiter="\t")
                if row["dtype"].startswith("float")
            }
        return {
            key: torch.empty([int(n) for n in shape.split(",") if n], device=DEVICE) for key, shape in shapes.items()
        }

    stand_in = SimpleNamespace(
        seeded_state_dict=state_dict, seeded_tensor=lambda key, shape: torch.empty(shape, device=DEVICE)
    )
    for module in (golden, weights, attributes):
        monkeypatch.setattr(module, "seeded", lambda: stand_in)


def computed_elsewhere(work: Callable[[], Any]) -> list[str]:
    with Elsewhere() as noted, torch.inference_mode():
        outputs = [leaf for leaf in tree_leaves(work()) if isinstance(leaf, Tensor)]
    assert outputs
    assert all(output.device == DEVICE for output in outputs)
    return noted.operations


def strays(network: nn.Module) -> list[str]:
    """Tensors that modules keep beside their parameters and buffers: they would stay behind when the network moves."""
    own = {"_parameters", "_buffers", "_modules"}
    return [
        f"{place}.{name}"
        for place, module in network.named_modules()
        for name, value in vars(module).items()
        if name not in own and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
    ]


def test_every_model_is_walked() -> None:
    """Embedding models: `tests.models.recognition.test_table` sees to it. Restorers of other sizes are the same network."""
    with_weights = {
        name for name, spec in MODELS.items() if spec.preprocess is not None and spec.role is not Role.EMBED
    }
    sizes = {name for name in with_weights if name.rpartition("-")[2].isdigit()}
    assert with_weights - sizes - {DFDNET} == DESCRIBERS.keys() | RESTORERS.keys()


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("name", [*WEIGHTS, *DESCRIBERS, *RESTORERS])
def test_a_forward_computes_on_its_device_and_asks_for_no_value(name: str) -> None:
    spec, made = MODELS[name], (WEIGHTS | DESCRIBERS | RESTORERS)[name]
    assert spec.preprocess is not None
    with DEVICE:
        network = spec.build(spec.official(made()))
    assert strays(network) == []
    size = spec.preprocess.template.size
    faces = spec.preprocess(torch.zeros(2, size, size, 3, dtype=torch.uint8, device=DEVICE))
    assert computed_elsewhere(lambda: network(faces)) == []
    if spec.interpret is not None:
        for estimate in spec.interpret(network(faces)).values():
            assert estimate.value.device == estimate.confidence.device == DEVICE


@pytest.mark.parametrize(("network", "size"), [(PNet, 40), (RNet, 24), (ONet, 48)], ids=["pnet", "rnet", "onet"])
def test_the_networks_of_the_detector_compute_on_their_device(network: type[nn.Module], size: int) -> None:
    with DEVICE:
        built = network().eval()
    assert strays(built) == []
    assert computed_elsewhere(lambda: built(torch.empty(3, 3, size, size, device=DEVICE))) == []


def test_crops_are_cut_on_the_device_of_the_photographs() -> None:
    photos = [
        torch.empty(300, 400, 3, dtype=torch.uint8, device=DEVICE),
        torch.empty(90, 80, 3, dtype=torch.uint8, device=DEVICE),
    ]
    boxes, landmarks = torch.tensor([[60.0, 50, 260, 270]] * 3), torch.rand(3, 5, 2) * 200 + 50
    views = [View(t.transforms(boxes, landmarks), t.size, t.fill) for t in (ARCFACE_112, DLIB_64, FACEXLIB_512)]
    crops = align_views(photos, views, torch.tensor([0, 1, 0]))
    assert [view.shape for view in crops] == [(3, 112, 112, 3), (3, 64, 64, 3), (3, 512, 512, 3)]
    assert {view.device for view in crops} == {DEVICE}


def test_crops_are_looked_at_on_their_device() -> None:
    crops = torch.empty(2, 256, 256, 3, dtype=torch.uint8, device=DEVICE)
    for look in (sharpness, covered_share):
        assert look(crops).device == DEVICE
