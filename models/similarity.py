"""How alike two pictures are by their pixels: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # px of SSIM's Gaussian window
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB (N,) of pictures (N, H, W, 3) uint8; 78 for equal ones."""
    error = (x.float() - y.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error.clamp_min(1e-3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (N,) of pictures (N, H, W, 3) uint8, 1 for equal ones.

    Wang, Bovik, Sheikh, Simoncelli, TIP 2004: a Gaussian window of 11 pixels, on each channel, where it lies inside.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float32, device=x.device) - WINDOW // 2
    gaussian = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = (gaussian / gaussian.sum()).outer(gaussian / gaussian.sum())[None, None]

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], kernel)

    a, b = (values.permute(0, 3, 1, 2).float() for values in (x, y))
    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    common = mean(a * b) - mean_a * mean_b
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    index = ((2 * mean_a * mean_b + c1) * (2 * common + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2)
    )
    return index.reshape(len(x), -1).mean(dim=1)
