"""Pixel and perceptual distances, against other implementations and known values."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.restoration.st_lpips import ST_LPIPS, StLpips
from models.similarity import psnr, ssim
from models.spec import CheckpointMismatch
from tasks.model_version import load_network
from tasks.versioning.install import install
from tests.portraits import portrait


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    clean = portrait(96)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    a, b = (torch.from_numpy(x.copy())[None] for x in (clean, noisy))
    assert psnr(a, b)[0] == pytest.approx(peak_signal_noise_ratio(clean, noisy), abs=1e-3)
    expected = structural_similarity(
        clean, noisy, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b)[0] == pytest.approx(expected, abs=0.01)  # which also counts a border with mirrored pixels
    assert ssim(a, a)[0] == pytest.approx(1)
    assert psnr(a, a)[0] > 70


def test_perceptual_distance_refuses_pictures_too_small_and_other_files() -> None:
    with pytest.raises(ValueError, match="pictures of 32 px or more"):
        StLpips()(torch.zeros(1, 3, 31, 64), torch.zeros(1, 3, 31, 64))
    with pytest.raises(CheckpointMismatch, match=r"alex_shift_tolerant\.pth"):
        ST_LPIPS.official({"scaling_layer.shift": torch.zeros(1)})


@pytest.mark.slow
def test_perceptual_distance_is_that_of_the_released_code(perceptual_weights: Path) -> None:
    """Values of stlpips-pytorch 0.0.2, LPIPS(net="alex", variant="shift_tolerant"), for these inputs."""
    [installed] = install(
        perceptual_weights / "weights", f"sqlite:///{perceptual_weights / 'mlflow.db'}", names=[ST_LPIPS.name]
    )
    network = load_network(installed.model)
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(2, 3, 96, 80, generator=generator) * 2 - 1
    noisy = (x + 0.5 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    smooth = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    with torch.inference_mode():
        assert network(x, noisy).tolist() == pytest.approx([0.0118326, 0.0121640], rel=1e-3)
        assert network(x, smooth).tolist() == pytest.approx([0.4959686, 0.4917332], rel=1e-3)
        assert network(x, x).tolist() == pytest.approx([0, 0], abs=1e-7)
