"""dlib's descriptor against dlib itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recognition.dlib_resnet import DLIB_RESNET, DlibResNet, build, read
from models.spec import CheckpointMismatch
from tests.models.bundled import assert_close, assert_taps, golden, golden_faces, photo, seeded_crops
from tests.models.recognition.golden import taps
from tests.models.test_readers import dlib_file


@pytest.fixture(scope="module")
def network(bundled: Callable[[str], nn.Module]) -> nn.Module:
    return bundled("dlib-resnet")


def embed(network: nn.Module, crops: Tensor) -> Tensor:
    assert DLIB_RESNET.preprocess is not None
    with torch.inference_mode():
        return network(DLIB_RESNET.preprocess(crops))


def test_descriptors_and_every_block_are_dlib_s(network: nn.Module) -> None:
    stored = golden("dlib_resnet")
    blocks = {f"block{i + 1}": f"blocks.{i}" for i in range(14)}
    with taps(network, list(blocks.values())) as outputs:
        descriptors = embed(network, seeded_crops(stored))
    # The goldens' intermediates are those of the first two pictures.
    assert_taps({name: value[:2] for name, value in outputs.items()}, stored, blocks)
    assert_close(descriptors, stored["descriptor"], 1e-5)


def test_black_chip_gives_dlib_s_descriptor(network: nn.Module) -> None:
    black = torch.zeros(1, 150, 150, 3, dtype=torch.uint8)
    assert_close(embed(network, black)[0], golden("dlib_resnet")["descriptor_black"], 1e-5)


def test_faces_in_photos_get_dlib_s_descriptors_and_people_stay_apart(network: nn.Module) -> None:
    faces = golden_faces("dlib_resnet")
    chips = []
    for face in faces:
        x0, y0, x1, y1 = face["crop"]["box"]
        cut = photo(face)[y0:y1, x0:x1].permute(2, 0, 1)[None].float()
        chips.append(F.interpolate(cut, size=(150, 150), mode="area").round().byte().permute(0, 2, 3, 1))
    descriptors = embed(network, torch.cat(chips))
    assert_close(descriptors, [face["crop"]["descriptor"] for face in faces], 1e-5)


def test_embedding_does_not_depend_on_batch_neighbours(network: nn.Module) -> None:
    crops = seeded_crops(golden("dlib_resnet"))
    alone = torch.cat([embed(network, crop[None]) for crop in crops])
    assert_close(embed(network, crops), alone.numpy(), 1e-6)


def test_empty_batch_gives_no_embeddings(network: nn.Module) -> None:
    assert embed(network, torch.empty(0, 150, 150, 3, dtype=torch.uint8)).shape == (0, 128)


def test_file_of_another_dlib_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.dat").write_bytes(dlib_file())
    with pytest.raises(CheckpointMismatch, match=r"other\.dat: 5 layers of 108, the first 0 as they should be"):
        read({"other.dat": tmp_path / "other.dat"})


def test_state_dict_with_a_missing_block_is_refused_by_key() -> None:
    state = DlibResNet().state_dict()
    del state["blocks.13.conv2.weight"]
    with pytest.raises(CheckpointMismatch, match=r"dlib-resnet: 1 missing: blocks\.13\.conv2\.weight"):
        build(state)
