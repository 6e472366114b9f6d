"""Every embedding model of the table keeps the same promises, with seeded weights in the place of real ones."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recognition.dlib_resnet import DlibResNet
from models.recognition.elasticface import UNITS, IResNet
from models.recognition.petalface import with_quality
from models.spec import ModelSpec, Role
from models.table import MODELS
from tests.models.attributes.golden import seeded_checkpoint
from tests.models.recognition.golden import checkpoint
from tests.reference import seeded

Weights = Callable[[], Mapping[str, Any]]


def table(relative: str, gain: float = 1.0) -> Weights:
    return lambda: checkpoint(relative, gain)


def shaped(network: Callable[[], nn.Module], gain: float = 1.0) -> Weights:
    def weights() -> dict[str, Tensor]:
        own, tensor = network().state_dict(), seeded().seeded_tensor
        values = {key: tensor(key, tuple(value.shape)) for key, value in own.items() if value.is_floating_point()}
        return {key: value * gain if value.ndim >= 2 else value for key, value in values.items()}

    return weights


def petalface() -> Mapping[str, Tensor]:
    backbone = checkpoint("petalface/state_dict_swin_iqa_lora8.tsv")
    return with_quality(backbone, {"params": checkpoint("petalface/state_dict_cnniqa.tsv")})


# Released layouts where the reference has them. The gains keep activations in a range that half precision holds.
WEIGHTS: dict[str, Weights] = {
    "dlib-resnet": shaped(DlibResNet),
    "elasticface-arc": table("elasticface/state_dict.tsv", 0.7),
    "facenet-vggface2": table("facenet/state_dict_vggface2.tsv", 1.5),
    "faceptor-base-embedding": lambda: seeded_checkpoint("faceptor", "state_dict_base.tsv"),
    "faceptor-full-embedding": lambda: seeded_checkpoint("faceptor"),
    "faceptor-layer-attention-embedding": lambda: seeded_checkpoint("faceptor", "state_dict_layer_attention.tsv"),
    "faceptor-naive-embedding": lambda: seeded_checkpoint("faceptor", "state_dict_naive.tsv"),
    "iresnet": shaped(lambda: IResNet(UNITS[18]), 0.7),
    "lightcnn-29": table("lightcnn/state_dict_29.tsv"),
    "lightcnn-29v2": table("lightcnn/state_dict_29v2.tsv"),
    "lightcnn-9": table("lightcnn/state_dict_9.tsv"),
    "lightcnn-v4": table("lightcnn/state_dict_v4.tsv"),
    "petalface": petalface,
    "petalface-base": table("petalface/state_dict_swin_base.tsv"),
    "petalface-single": table("petalface/state_dict_swin_lora8_single.tsv"),
    "sface-ir-101": table("sface/state_dict_IR_101.tsv", 0.5),
    "sface-ir-50": table("sface/state_dict_IR_50.tsv", 0.6),
    "sface-mobilefacenet": table("sface/state_dict_MobileFaceNet.tsv", 0.8),
    "swinface-embedding": lambda: seeded_checkpoint("swinface"),
}
SAME_NETWORK = {
    "elasticface-arc-plus": "elasticface-arc",
    "elasticface-cos": "elasticface-arc",
    "elasticface-cos-plus": "elasticface-arc",
    "facenet-casia-webface": "facenet-vggface2",
}
FAST = {"dlib-resnet", "iresnet", "lightcnn-9", "lightcnn-v4", "sface-mobilefacenet"}


def marked(name: str) -> object:
    return pytest.param(name, marks=() if name in FAST else pytest.mark.slow)


EMBEDDERS = sorted(name for name, spec in MODELS.items() if spec.role is Role.EMBED)


def test_every_embedding_model_is_walked():
    assert sorted(WEIGHTS.keys() | SAME_NETWORK.keys()) == EMBEDDERS, "a new embedding model wants an entry in WEIGHTS"


@pytest.mark.parametrize(("name", "walked"), SAME_NETWORK.items())
def test_variants_that_differ_in_their_training_alone_share_the_network_that_is_walked(name, walked):
    ours, theirs = MODELS[name], MODELS[walked]
    assert (ours.build, ours.preprocess, ours.dimension) == (theirs.build, theirs.preprocess, theirs.dimension)


@pytest.fixture(scope="module", params=[marked(name) for name in WEIGHTS])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def network(spec: ModelSpec) -> nn.Module:
    return spec.build(spec.official(WEIGHTS[spec.name]()))


@pytest.fixture(scope="module")
def faces(spec: ModelSpec) -> Tensor:
    """17 different crops after the model's preprocessing."""
    assert spec.preprocess is not None
    size = spec.preprocess.template.size
    crops = [255 * seeded().seeded_image(f"walk-{index}", size) for index in range(17)]
    return spec.preprocess(torch.cat(crops).permute(0, 2, 3, 1).to(torch.uint8))


@pytest.fixture(scope="module")
def embeddings(network: nn.Module, faces: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(faces)


def test_dimension_is_that_of_the_table_at_any_batch_size(spec, network, faces, embeddings):
    with torch.inference_mode():
        for count in (1, 2):
            assert network(faces[:count]).shape == (count, spec.dimension)
    assert embeddings.shape == (17, spec.dimension)
    assert embeddings.dtype == torch.float32
    assert torch.isfinite(embeddings).all()


def test_embedding_tells_faces_apart(embeddings):
    similarity = F.normalize(embeddings) @ F.normalize(embeddings).T
    assert similarity.fill_diagonal_(-1).max() < 1 - 1e-4


def test_same_faces_give_the_same_embedding(network, faces):
    with torch.inference_mode():
        assert torch.equal(network(faces[:2]), network(faces[:2]))


def test_embedding_does_not_depend_on_batch_neighbours(network, faces, embeddings):
    with torch.inference_mode():
        for index in (0, 7, 16):
            alone = F.normalize(network(faces[index : index + 1]))[0]
            assert torch.dist(alone, F.normalize(embeddings)[index]) < 1e-5


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.bfloat16), ("cuda", torch.float16)], ids=["cpu", "gpu"])
def test_half_precision_keeps_the_embedding(network, faces, embeddings, device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    half = copy.deepcopy(network).to(device, dtype)
    with torch.inference_mode():
        found = half(faces[:2].to(device, dtype)).float().cpu()
    assert F.cosine_similarity(found, embeddings[:2]).min() > 0.99


def test_torch_export_gives_the_same_embedding_at_any_batch_size(network, faces, embeddings):
    batch = torch.export.Dim("batch", max=64)
    module = torch.export.export(network, (faces[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.inference_mode():
        found = F.normalize(module(faces[:3]))
    torch.testing.assert_close(found, F.normalize(embeddings[:3]), rtol=0, atol=1e-5)
