"""Networks compute in the layout and the precision that the processor is fastest in, and nobody can tell by the results."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from infra.settings import Settings
from models.spec import Role
from models.table import MODELS
from tasks.align import align_faces
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import Embed, embed
from tasks.execution import inference
from tasks.execution.inference import InBfloat16, bfloat16_parts, has_bfloat16, load_for_inference
from tasks.model_version import ModelVersion, load_network
from tasks.photo_faces import PhotoFaces, crop
from tasks.recipe import version_for
from tests.portraits import jpeg, mirrored, pair, portrait

needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16("cpu"), reason="this processor does not compute in bfloat16 (AVX512-BF16)"
)


@pytest.fixture(scope="module")
def settings(weights_dir: Path, tracking_uri: str) -> Settings:
    return Settings(weights=weights_dir, tracking_uri=tracking_uri)


@pytest.fixture(scope="module")
def embedder(settings: Settings) -> ModelVersion:
    return version_for(Role.EMBED, "dlib-resnet", settings)


@pytest.fixture(scope="module")
def faces(settings: Settings, embedder: ModelVersion) -> NDArray[np.uint8]:
    """Real faces (N, 150, 150, 3) at many sizes, as the recognition model wants to see them."""
    pictures = [way(side) for side in (120, 200, 320, 500) for way in (portrait, mirrored, pair)]
    items = [
        Decoded(PhotoFaces(i, f"{i}.jpg", len(data)), decode(data), data)
        for i, data in enumerate(jpeg(picture) for picture in pictures)
    ]
    assert embedder.spec.preprocess is not None
    template = embedder.spec.preprocess.template
    detect = Detect(version_for(Role.DETECT, "mtcnn", settings), "cpu")
    found = [align_faces(item, DecodeLimits(), [template]).arrays[crop(template)] for item in detect(items)]
    return np.concatenate(found)


def embedded(version: ModelVersion, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    return embed(load_for_inference(version), version.spec, crops, "cpu")


@needs_bfloat16
def test_embeddings_in_bfloat16_are_those_of_float32(embedder: ModelVersion, faces: NDArray[np.uint8]) -> None:
    assert bfloat16_parts(embedder, "cpu")
    reduced, full = embedded(embedder, faces), embedded(replace(embedder, precision="float32"), faces)
    assert not np.array_equal(reduced, full)  # it did compute otherwise
    assert (reduced * full).sum(axis=1).min() > 0.9999
    assert np.abs(reduced @ reduced.T - full @ full.T).max() < 0.003  # and so no similarity moves


@needs_bfloat16
def test_an_embedding_in_bfloat16_does_not_depend_on_batch_neighbours(
    embedder: ModelVersion, faces: NDArray[np.uint8]
) -> None:
    network = load_for_inference(embedder)
    together = embed(network, embedder.spec, faces, "cpu")
    for size in (1, 3):
        parts = [embed(network, embedder.spec, faces[i : i + size], "cpu") for i in range(0, len(faces), size)]
        np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-6)


@needs_bfloat16
def test_every_stage_of_a_job_computes_as_the_settings_say(settings: Settings) -> None:
    chosen = version_for(Role.EMBED, "dlib-resnet", settings.model_copy(update={"precision": "float32"}))
    assert not any(isinstance(part, InBfloat16) for part in Embed(chosen, "cpu").network.modules())
    sent = pickle.loads(pickle.dumps(version_for(Role.EMBED, "dlib-resnet", settings)))  # to an actor
    assert any(isinstance(part, InBfloat16) for part in Embed(sent, "cpu").network.modules())


def test_precision_is_no_part_of_what_a_result_is(embedder: ModelVersion) -> None:
    """The same rows, calibration and serving version: what computes in bfloat16 was shown to be the same."""
    other = replace(embedder, precision="float32")
    assert other == embedder
    assert other.contract == embedder.contract


def test_only_what_was_shown_to_lose_nothing_computes_in_bfloat16(
    embedder: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "has_bfloat16", lambda device: device == "cuda")
    named = {name: spec.bfloat16 for name, spec in MODELS.items() if spec.bfloat16}
    assert named == {"dlib-resnet": ("blocks",), "real-esrgan-x4plus": ("body",)}
    assert bfloat16_parts(embedder, "cuda") == ("blocks",)
    assert not bfloat16_parts(replace(embedder, spec=replace(embedder.spec, bfloat16=())), "cuda")
    assert not bfloat16_parts(replace(embedder, precision="float32"), "cuda")
    assert not bfloat16_parts(embedder, "cpu")


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValidationError, match="precision"):
        Settings.model_validate({"precision": "float16"})


@pytest.mark.parametrize("name", ["dlib-resnet", "mini-xception", "dlib-age", "dlib-gender"])
def test_the_faster_layout_changes_nothing_but_rounding(name: str, settings: Settings) -> None:
    spec = MODELS[name]
    version = replace(version_for(spec.role, name, settings), precision="float32")
    network = load_for_inference(version)
    kernels = [p for p in network.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert spec.preprocess is not None
    pixels = portrait(spec.preprocess.template.size)
    inputs = spec.preprocess(torch.from_numpy(np.stack([pixels, pixels[:, ::-1]])))
    with torch.inference_mode():
        found: Tensor = network(inputs)
        plain: Tensor = load_network(version)(inputs)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
