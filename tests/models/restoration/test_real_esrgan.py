"""Real-ESRGAN against ncnn on the released pair."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.restoration.real_esrgan import REAL_ESRGAN_X4PLUS, RealEsrgan, build, read
from models.spec import CheckpointMismatch
from tests.models.bundled import TOLERANCE, assert_close, assert_taps, golden
from tests.models.recognition.golden import taps
from tests.models.test_readers import BIN, PARAM
from tests.reference import seeded


@pytest.fixture(scope="module")
def network(bundled: Callable[[str], nn.Module]) -> nn.Module:
    return bundled("real-esrgan-x4plus")


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(x)


def test_output_and_intermediates_are_ncnn_s(network: nn.Module) -> None:
    stored = golden("realesrgan_x4plus")
    names = {name: name for name in ("conv_first", "body.0", "body.11", "body.22")}
    with taps(network, list(names)) as outputs:
        output = run(network, seeded().seeded_image("realesrgan_x4plus", 48))
    assert_taps(outputs, stored, names)
    assert_close(output[0], stored["output"], TOLERANCE)


def test_result_is_four_times_as_large_in_the_input_s_range(network: nn.Module) -> None:
    assert REAL_ESRGAN_X4PLUS.preprocess is not None
    crops = torch.full((1, 24, 20, 3), 128, dtype=torch.uint8)
    restored = run(network, REAL_ESRGAN_X4PLUS.preprocess(crops))
    assert restored.shape == (1, 3, 96, 80)
    assert restored.mean() == pytest.approx(128 / 255, abs=0.02)


def test_restoration_does_not_depend_on_batch_neighbours(network: nn.Module) -> None:
    pictures = torch.cat([seeded().seeded_image(name, 16) for name in ("a", "b")])
    alone = torch.cat([run(network, picture[None]) for picture in pictures])
    assert_close(run(network, pictures), alone.numpy(), 1e-5)


def test_colours_stay_where_they_are(network: nn.Module) -> None:
    """A red field stays red: channel order in and out is RGB."""
    red = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    found = run(network, red).mean(dim=(0, 2, 3))
    np.testing.assert_allclose(found, [0.8, 0.1, 0.1], atol=0.05)


def test_another_model_of_the_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "anime.param").write_text(PARAM)
    (tmp_path / "anime.bin").write_bytes(BIN)
    with pytest.raises(CheckpointMismatch, match=r"anime\.param: 2 convolutions, 351 expected"):
        read({name: tmp_path / name for name in ("anime.param", "anime.bin")})


def test_weights_of_six_blocks_are_refused_by_key() -> None:
    state = {key: value for key, value in RealEsrgan().state_dict().items() if not key.startswith("body.2")}
    with pytest.raises(CheckpointMismatch, match=r"missing: body\.2\.rdb1"):
        build(state)
