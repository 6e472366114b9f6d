"""On a GPU every stage gives what it gives on the CPU: `pytest -m gpu`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.settings import Settings
from models.alignment import align
from models.detection.mtcnn import MTCNN
from models.recognition.elasticface import IRESNET, UNITS, IResNet
from models.spec import Role
from models.table import MODELS
from models.template import ARCFACE_112, DLIB_64, DLIB_150, FACEXLIB_512
from tasks.align import align_faces
from tasks.assess import measure
from tasks.decode import DecodeLimits, decode
from tasks.describe import Describe, batch_of, describe_crops
from tasks.detect import Decoded, Detect
from tasks.embed import BATCH, Embed
from tasks.execution.cuda_graph import Recorded, example
from tasks.execution.inference import bfloat16_parts, load_for_inference
from tasks.execution.restorer import Restorer
from tasks.execution.transfer import download, upload
from tasks.model_version import ModelVersion, find_version
from tasks.photo_faces import BOXES, EMBEDDING, LANDMARKS, SCORES, PhotoFaces, crop
from tasks.recipe import version_for
from tasks.versioning.register import add_checkpoint
from tests.portraits import jpeg, landscape, mirrored, pair, portrait

pytestmark = pytest.mark.gpu

GPU, LIMITS = "cuda", DecodeLimits()
WAYS = (portrait, mirrored, pair)


@pytest.fixture(scope="module")
def settings(weights_dir: Path, tracking_uri: str) -> Settings:
    return Settings(weights=weights_dir, tracking_uri=tracking_uri)


@pytest.fixture(scope="module")
def pictures() -> list[Decoded]:
    """Photos of many sizes with one face, two, or none."""
    files = [jpeg(way(side)) for side in (120, 200, 320, 500, 900) for way in WAYS] + [jpeg(landscape())]
    decoded = [decode(data, LIMITS, long_side=1280) for data in files]
    return [
        Decoded(PhotoFaces(i, f"{i}.jpg", len(data), width=p.width, height=p.height), p, data)
        for i, (data, p) in enumerate(zip(files, decoded, strict=True))
    ]


@pytest.fixture(scope="module")
def detected(settings: Settings, pictures: list[Decoded]) -> list[Decoded]:
    """The photos with their faces, as the CPU finds them."""
    return Detect(version_for(Role.DETECT, "mtcnn", settings), "cpu")(pictures)


@pytest.fixture(scope="module")
def iresnet_100(weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """An IResNet-100 with weights of chance, registered."""
    folder = tmp_path_factory.mktemp("iresnet-100")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(IResNet(UNITS[100]).state_dict(), folder / "iresnet.pth")
    add_checkpoint("iresnet", [folder / "iresnet.pth"], folder / "weights", f"sqlite:///{folder / 'mlflow.db'}")
    return find_version("iresnet", folder / "weights", f"sqlite:///{folder / 'mlflow.db'}")


def float32(version: ModelVersion) -> ModelVersion:
    return replace(version, precision="float32")


def many(size: int, count: int) -> NDArray[np.uint8]:
    """Crops (count, size, size, 3) that differ, of faces and of parts of them."""
    sides = np.linspace(size, 3 * size, count).astype(int).tolist()
    corners = [(side - size) // 3 for side in sides]
    return np.stack(
        [
            WAYS[k % 2](side)[at : at + size, at : at + size]
            for k, (side, at) in enumerate(zip(sides, corners, strict=True))
        ]
    )


def with_crops(version: ModelVersion, count: int) -> list[PhotoFaces]:
    """A photo with so many faces, ready to be embedded."""
    assert version.spec.preprocess is not None
    template = version.spec.preprocess.template
    photo = PhotoFaces(0, "a.jpg", 1).having(
        **{BOXES: np.zeros((count, 4), np.float32), crop(template): many(template.size, count)}
    )
    return [photo]


def embeddings(version: ModelVersion, device: str, count: int) -> Tensor:
    [photo] = Embed(version, device)(with_crops(version, count))
    assert photo.failure is None, photo.failure
    return torch.from_numpy(photo.arrays[EMBEDDING])


def by_x(photo: PhotoFaces, name: str) -> NDArray[np.float32]:
    """Rows of the faces from left to right: equally large ones may change places."""
    return photo.arrays[name][np.argsort(photo.arrays[BOXES][:, 0])]


def assert_same_faces(found: Sequence[PhotoFaces], expected: Sequence[PhotoFaces]) -> None:
    for own, wanted in zip(found, expected, strict=True):
        assert own.face_count == wanted.face_count, own.key
        for name, tolerance in ((BOXES, 1.0), (LANDMARKS, 1.0), (SCORES, 0.01)):
            np.testing.assert_allclose(by_x(own, name), by_x(wanted, name), rtol=0, atol=tolerance, err_msg=own.key)


def test_faces_are_those_of_the_cpu_within_a_pixel(
    settings: Settings, pictures: list[Decoded], detected: list[Decoded]
) -> None:
    found = Detect(version_for(Role.DETECT, "mtcnn", settings), GPU)(pictures)
    assert sum(item.photo.face_count for item in found) >= 15
    assert all(item.pixels.is_cuda for item in found)
    assert_same_faces([item.photo for item in found], [item.photo for item in detected])


def test_faces_of_a_photo_do_not_depend_on_the_others_on_a_gpu(
    bundled: Callable[[str], nn.Module], pictures: list[Decoded]
) -> None:
    network = bundled("mtcnn").to(GPU)
    assert isinstance(network, MTCNN)
    torch.backends.cudnn.allow_tf32 = False
    photos = [upload(item.picture.pixels, GPU) for item in pictures]
    for alone, together in zip([network.detect([photo])[0] for photo in photos], network.detect(photos), strict=True):
        assert len(alone) == len(together)
        order, other = alone.boxes[:, 0].argsort(), together.boxes[:, 0].argsort()
        torch.testing.assert_close(alone.boxes[order], together.boxes[other], rtol=0, atol=1.0)


@pytest.mark.parametrize("template", [ARCFACE_112, DLIB_64, DLIB_150, FACEXLIB_512], ids=lambda template: template.name)
def test_crops_are_those_of_the_cpu_within_a_grey_level(template) -> None:
    generator = torch.Generator().manual_seed(0)
    photos = [torch.from_numpy(portrait(side).copy()) for side in (90, 400, 1300)]
    photos.append(torch.randint(0, 256, (700, 500, 3), dtype=torch.uint8, generator=generator))
    index = torch.arange(len(photos)).repeat_interleave(20)
    spread = torch.tensor([photo.shape[1] for photo in photos])[index, None, None].double()
    landmarks = torch.rand(len(index), 5, 2, generator=generator, dtype=torch.float64) * 1.3 * spread - 0.15 * spread
    transforms = template.transforms(torch.zeros(len(index), 4), landmarks)
    expected = align(photos, transforms, index, template.size, template.fill)
    found = align([photo.to(GPU) for photo in photos], transforms, index, template.size, template.fill)
    assert found.is_cuda
    assert (found.cpu().int() - expected.int()).abs().max() <= 1


def test_crops_and_what_is_measured_of_them_are_those_of_the_cpu(detected: list[Decoded]) -> None:
    templates = [DLIB_150, DLIB_64, ARCFACE_112]
    there = [replace(item, uploaded=item.pixels.to(GPU)) for item in detected]
    expected = [align_faces(item, LIMITS, templates) for item in detected]
    found = [align_faces(item, LIMITS, templates) for item in there]
    for own, wanted in zip(found, expected, strict=True):
        for name in own.arrays:
            difference = np.abs(own.arrays[name].astype(float) - wanted.arrays[name])
            assert difference.max(initial=0) <= 1, name
    nobody = [photo for photo in expected if not photo.face_count]
    assert nobody
    assert len(measure(nobody, GPU)) == len(nobody)
    # Of the same crops: a grey level more or less in one of them is measured, too.
    for own, wanted in zip(measure(expected, GPU), measure(expected, "cpu"), strict=True):
        assert own.arrays.keys() == wanted.arrays.keys()
        for name, values in wanted.arrays.items():
            np.testing.assert_allclose(own.arrays[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("count", [1, BATCH, 2 * BATCH + 5])
def test_embeddings_in_float32_are_those_of_the_cpu(settings: Settings, count: int) -> None:
    version = float32(version_for(Role.EMBED, "dlib-resnet", settings))
    found, expected = embeddings(version, GPU, count), embeddings(version, "cpu", count)
    assert F.cosine_similarity(found, expected).min() > 0.9999


def test_embeddings_in_bfloat16_are_those_of_float32(settings: Settings) -> None:
    version = version_for(Role.EMBED, "dlib-resnet", settings)
    if not bfloat16_parts(version, GPU):
        pytest.skip("this GPU does not multiply in bfloat16")
    found, expected = embeddings(version, GPU, BATCH + 5), embeddings(float32(version), "cpu", BATCH + 5)
    assert not torch.equal(found, embeddings(float32(version), GPU, BATCH + 5))  # it did compute otherwise
    assert F.cosine_similarity(found, expected).min() > 0.999


def test_embeddings_of_iresnet_100_are_those_of_the_cpu(iresnet_100: ModelVersion) -> None:
    expected = embeddings(iresnet_100, "cpu", BATCH)
    assert F.cosine_similarity(embeddings(iresnet_100, GPU, BATCH), expected).min() > 0.9999
    in_bfloat16 = replace(iresnet_100, spec=replace(IRESNET, bfloat16=("layer1", "layer2", "layer3", "layer4")))
    if bfloat16_parts(in_bfloat16, GPU):
        assert F.cosine_similarity(embeddings(in_bfloat16, GPU, BATCH), expected).min() > 0.999


@pytest.mark.parametrize("name", ["mini-xception", "dlib-age", "dlib-gender"])
def test_descriptions_are_those_of_the_cpu(name: str, settings: Settings) -> None:
    version = version_for(Role.DESCRIBE, name, settings)
    wanted = frozenset(attribute.name for attribute in version.spec.attributes)
    count = batch_of(version.spec) + 3
    assert version.spec.preprocess is not None
    crops = many(version.spec.preprocess.template.size, count)
    (_, on_gpu), (_, on_cpu) = (Describe([version], wanted, device).models[0] for device in (GPU, "cpu"))
    found, expected = (
        describe_crops(version, network, crops, wanted, device) for network, device in ((on_gpu, GPU), (on_cpu, "cpu"))
    )
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        if key.endswith(("probabilities", "confidence")):
            np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-3, err_msg=key)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_restored_faces_are_those_of_the_cpu(precision: str, settings: Settings) -> None:
    version = replace(version_for(Role.RESTORE, "real-esrgan-x4plus", settings), precision=precision)
    crops = torch.from_numpy(many(96, 2))
    landmarks = torch.zeros(2, 5, 2)
    found = Restorer(version, GPU)(crops, landmarks)
    expected = Restorer(float32(version), "cpu")(crops, landmarks)
    assert found.pixels.is_cuda
    error = (found.pixels.cpu().float() - expected.pixels.float()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error.clamp_min(1e-9))).min() > (50 if precision == "float32" else 45)  # dB


@pytest.mark.parametrize("name", ["dlib-resnet", "mini-xception", "dlib-age", "dlib-gender"])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_replayed_batch_is_the_computed_one(name: str, precision: str, settings: Settings) -> None:
    spec = MODELS[name]
    network = load_for_inference(replace(version_for(spec.role, name, settings), precision=precision), GPU)
    replayed = Recorded(network, example(spec, 8, GPU))
    tolerance = 1e-4 if precision == "float32" else 1e-2
    assert spec.preprocess is not None
    crops = torch.from_numpy(many(spec.preprocess.template.size, 16)).to(GPU)
    with torch.inference_mode():
        for faces in spec.preprocess(crops).split(8):
            for batch in (faces, faces.flip(3), faces[:3]):
                torch.testing.assert_close(replayed(batch), network(batch), rtol=tolerance, atol=tolerance)


def test_what_is_read_back_is_what_was_sent() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 256, 256, 3), dtype=np.uint8)
    sent = [upload(values[k : k + 10], GPU) for k in range(0, 50, 10)]
    assert all(tensor.is_cuda for tensor in sent)
    back = download({str(k): tensor + 1 for k, tensor in enumerate(sent)})
    np.testing.assert_array_equal(np.concatenate(list(back.values())), values + 1)


def test_a_batch_is_embedded_without_waiting_for_the_gpu_until_its_vectors_are_there(settings: Settings) -> None:
    version = version_for(Role.EMBED, "dlib-resnet", settings)
    stage, spec = Embed(version, GPU), version.spec
    assert spec.preprocess is not None
    crops = many(spec.preprocess.template.size, BATCH)
    with torch.inference_mode():
        stage.forward(spec.preprocess(upload(crops, GPU)))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            vectors = stage.forward(spec.preprocess(upload(crops, GPU)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(vectors).all())
