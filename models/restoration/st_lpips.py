"""ST-LPIPS: how different two pictures look, by what an AlexNet sees in them.

Ghildyal, Liu, "Shift-tolerant LPIPS", ECCV 2022 (arXiv:2207.13686): the learned perceptual distance of Zhang et al. (CVPR 2018,
arXiv:1801.03924) with blurred instead of plain strides, so that a pixel aside costs little. Weights: BSD-2-Clause.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.readers.checkpoint import read_checkpoint
from models.spec import BundledWeights, CheckpointMismatch, ModelSpec, Role, StateDict, Wheel, WheelFile

CHANNELS = (64, 192, 384, 256, 256)
KERNELS = (11, 5, 3, 3, 3)
PADDINGS = (2, 2, 1, 1, 1)
NAMES = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")  # in the released file
BINOMIAL = torch.tensor([1.0, 2.0, 1.0]) / 4
SMALLEST = 32  # px: below it the last maps are a position or two


class StLpips(nn.Module):
    """Two batches of pictures (N, 3, H, W) in [-1, 1] to their distances (N,), 0 for equal ones; differentiable."""

    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.register_buffer("blur", BINOMIAL.outer(BINOMIAL)[None, None], persistent=False)
        inputs = (3, *CHANNELS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=padding)
            for a, b, kernel, padding in zip(inputs, CHANNELS, KERNELS, PADDINGS, strict=False)
        )
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(1, channels, 1, 1)) for channels in CHANNELS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[2:]) < SMALLEST:
            raise ValueError(f"the perceptual distance needs pictures of {SMALLEST} px or more, not {tuple(x.shape)}")
        return sum(
            (((a - b).square() * weight).sum(dim=1).mean(dim=(1, 2)))
            for a, b, weight in zip(self.features(x), self.features(y), self.weights, strict=True)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps after each of the five ReLUs, every position of unit length."""
        first, second, third, fourth, fifth = self.convolutions
        maps = [F.relu(self._halved(first((x - self.shift) / self.scale)))]
        maps.append(F.relu(second(self._halved(F.max_pool2d(maps[-1], 3, stride=1)))))
        maps.append(F.relu(third(self._halved(F.max_pool2d(maps[-1], 3, stride=1)))))
        maps.append(F.relu(fourth(maps[-1])))
        maps.append(F.relu(fifth(maps[-1])))
        return [m / (m.square().sum(dim=1, keepdim=True) + 1e-12).sqrt() for m in maps]

    def _halved(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels
        )


def build(state_dict: StateDict) -> StLpips:
    """Build the network with these weights.

    Raises CheckpointMismatch, naming the keys, if they are another network's.
    """
    return load(StLpips(), state_dict, "st-lpips")


def official(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the released file's names into the network's.

    Raises CheckpointMismatch for any other file.
    """
    try:
        state = {name: checkpoint[f"scaling_layer.{name}"] for name in ("shift", "scale")}
        for i, name in enumerate(NAMES):
            state |= {f"convolutions.{i}.{part}": checkpoint[f"{name}.{part}"] for part in ("weight", "bias")}
            state[f"weights.{i}"] = checkpoint[f"lin{i}.model.1.weight"]
    except KeyError as missing:
        raise CheckpointMismatch(f"{missing} is missing. Is this alex_shift_tolerant.pth?") from None
    return state


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Turn the file in the package into a state dict."""
    return official(read_checkpoint(files.values()))


ST_LPIPS = ModelSpec(
    name="st-lpips-alex",
    role=Role.COMPARE,
    title="Shift-tolerant LPIPS (AlexNet)",
    licence="BSD-2-Clause",
    source="https://github.com/abhijay9/ShiftTolerant-LPIPS",
    paper="arXiv:2207.13686",
    build=build,
    official=official,
    bundled=BundledWeights(
        wheel=Wheel(
            package="stlpips-pytorch",
            version="0.0.2",
            filename="stlpips_pytorch-0.0.2-py3-none-any.whl",
            size=63_807_084,
            sha256="a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
        ),
        files=(
            WheelFile(
                path="stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
                size=9_899_296,
                sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
            ),
        ),
        read=read,
    ),
    notes="Judges restorers in 'visage evaluate restoration' and trains them; 'visage models install' leaves it out unless it "
    "is named (64 MB). Its AlexNet was trained on ImageNet, its weights on people's judgements of distorted photographs.",
)
