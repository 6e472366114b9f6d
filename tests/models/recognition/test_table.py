"""Every embedding model of the table keeps the same promises, with seeded weights in the place of real ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lora import SUFFIX, Adapted
from models.spec import ModelSpec, Role
from models.table import ADAPTABLE, MODELS
from tests.models.recognition.weights import SAME_NETWORK, WEIGHTS
from tests.reference import seeded

FAST = {"dlib-resnet", "dlib-resnet-lora", "iresnet", "lightcnn-9", "lightcnn-v4", "sface-mobilefacenet"}
# Heavy ones with a sibling among the others, of the same code in other sizes.
SIBLINGS = {
    "faceptor-base-embedding",
    "faceptor-layer-attention-embedding",
    "faceptor-naive-embedding",
    "lightcnn-29",
    "petalface-base-lora",
    "petalface-single",
    "sface-ir-50",
}


def marked(name: str) -> object:
    mark = pytest.mark.long if name in SIBLINGS else pytest.mark.slow
    return pytest.param(name, marks=() if name in FAST else mark)


EMBEDDERS = sorted(name for name, spec in MODELS.items() if spec.role is Role.EMBED)


def test_every_embedding_model_is_walked():
    walked = WEIGHTS.keys() | SAME_NETWORK.keys()
    by_their_backbone = {base.name + SUFFIX for base in ADAPTABLE if base.name in walked}
    assert sorted(walked | by_their_backbone) == EMBEDDERS, "a new embedding model wants an entry in WEIGHTS"


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
    """Five different crops after the model's preprocessing."""
    assert spec.preprocess is not None
    size = spec.preprocess.template.size
    crops = [255 * seeded().seeded_image(f"walk-{index}", size) for index in range(5)]
    return spec.preprocess(torch.cat(crops).permute(0, 2, 3, 1).to(torch.uint8))


@pytest.fixture(scope="module")
def embeddings(network: nn.Module, faces: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(faces)


def test_dimension_is_that_of_the_table_at_any_batch_size(spec, network, faces, embeddings):
    with torch.inference_mode():
        for count in (1, 2):
            assert network(faces[:count]).shape == (count, spec.dimension)
    assert embeddings.shape == (5, spec.dimension)
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
        for index in (0, 2, 4):
            alone = F.normalize(network(faces[index : index + 1]))[0]
            assert torch.dist(alone, F.normalize(embeddings)[index]) < 1e-5


def test_fresh_adapters_change_no_embedding_whatever_the_backbone(spec, network, faces):
    adaptable = spec.name in {base.name for base in ADAPTABLE}
    assert (spec.name + SUFFIX in MODELS) == adaptable
    if adaptable:
        adapted = MODELS[spec.name + SUFFIX].build(Adapted(copy.deepcopy(network), rank=4).state_dict())
        with torch.inference_mode():
            assert torch.equal(adapted(faces[:1]), network(faces[:1]))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.bfloat16, id="cpu"),
        pytest.param("cuda", torch.float16, id="gpu", marks=pytest.mark.gpu),
    ],
)
def test_half_precision_keeps_the_embedding(network, faces, embeddings, device, dtype):
    half = copy.deepcopy(network).to(device, dtype)
    with torch.inference_mode():
        found = half(faces[:2].to(device, dtype)).float().cpu()
    assert F.cosine_similarity(found, embeddings[:2]).min() > 0.99


@pytest.mark.long
def test_torch_export_gives_the_same_embedding_at_any_batch_size(network, faces, embeddings):
    batch = torch.export.Dim("batch", max=64)
    module = torch.export.export(network, (faces[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.inference_mode():
        found = F.normalize(module(faces[:3]))
    torch.testing.assert_close(found, F.normalize(embeddings[:3]), rtol=0, atol=1e-5)
