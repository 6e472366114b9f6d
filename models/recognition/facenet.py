"""FaceNet: face embeddings of 512 numbers from Inception-ResNet v1.

Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015
(arXiv:1503.03832); network: Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections",
AAAI 2017 (arXiv:1602.07261).
Released checkpoints: github.com/timesler/facenet-pytorch, release v2.2.9 (code MIT; the weights, trained on the research
data sets VGGFace2 and CASIA-WebFace, carry no licence of their own). They were trained with softmax, not with triplets.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import load, unwrap
from models.spec import CheckpointMismatch, Color, ModelSpec, Preprocess, Role, StateDict
from models.template import BoxTemplate

NORM_EPS = 1e-3  # TensorFlow's default, under which the released weights were trained; torch's is 1e-5


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU. (N, C, H, W) to (N, out, H', W')."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Inception: the branches see the same input, their outputs are joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for index, branch in enumerate(branches):
            self.add_module(f"branch{index}", branch)  # named as in the released checkpoints
        self.count = len(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(f"branch{index}")(x) for index in range(self.count)], dim=1)


class Residual(Branches):
    """Inception-ResNet block: x + scale * conv1x1(branches), then ReLU (arXiv:1602.07261, Sections 3.2 and 3.3).

    (N, C, H, W) to the same. The 1x1 convolution has a bias and no norm; only the network's last block goes without ReLU.
    """

    def __init__(self, *branches: nn.Module, width: int, channels: int, scale: float, relu: bool = True) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(width, channels, 1)
        self.scale = scale
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = x + self.scale * self.conv2d(super().forward(x))
        return torch.relu(out) if self.relu else out


def block35() -> Residual:
    """Inception-ResNet-A on 256 channels of a 17x17 grid."""
    return Residual(
        ConvUnit(256, 32, 1),
        nn.Sequential(ConvUnit(256, 32, 1), ConvUnit(32, 32, 3, padding=1)),
        nn.Sequential(ConvUnit(256, 32, 1), ConvUnit(32, 32, 3, padding=1), ConvUnit(32, 32, 3, padding=1)),
        width=96, channels=256, scale=0.17,
    )  # fmt: skip


def block17() -> Residual:
    """Inception-ResNet-B on 896 channels of an 8x8 grid: 7x7 factorised into a row and a column."""
    row, column = ConvUnit(128, 128, (1, 7), padding=(0, 3)), ConvUnit(128, 128, (7, 1), padding=(3, 0))
    factorised = nn.Sequential(ConvUnit(896, 128, 1), row, column)
    return Residual(ConvUnit(896, 128, 1), factorised, width=256, channels=896, scale=0.10)


def block8(scale: float = 0.20, relu: bool = True) -> Residual:
    """Inception-ResNet-C on 1792 channels of a 3x3 grid: 3x3 factorised into a row and a column."""
    row, column = ConvUnit(192, 192, (1, 3), padding=(0, 1)), ConvUnit(192, 192, (3, 1), padding=(1, 0))
    factorised = nn.Sequential(ConvUnit(1792, 192, 1), row, column)
    return Residual(ConvUnit(1792, 192, 1), factorised, width=384, channels=1792, scale=scale, relu=relu)


def mixed_6a() -> Branches:
    """Reduction-A: 256 channels of 17x17 to 896 of 8x8."""
    return Branches(
        ConvUnit(256, 384, 3, stride=2),
        nn.Sequential(ConvUnit(256, 192, 1), ConvUnit(192, 192, 3, padding=1), ConvUnit(192, 256, 3, stride=2)),
        nn.MaxPool2d(3, stride=2),
    )


def mixed_7a() -> Branches:
    """Reduction-B: 896 channels of 8x8 to 1792 of 3x3."""
    return Branches(
        nn.Sequential(ConvUnit(896, 256, 1), ConvUnit(256, 384, 3, stride=2)),
        nn.Sequential(ConvUnit(896, 256, 1), ConvUnit(256, 256, 3, stride=2)),
        nn.Sequential(ConvUnit(896, 256, 1), ConvUnit(256, 256, 3, padding=1), ConvUnit(256, 256, 3, stride=2)),
        nn.MaxPool2d(3, stride=2),
    )


class InceptionResnetV1(nn.Module):
    """The network of the released checkpoints: (N, 3, 160, 160) to embeddings (N, 512), not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = ConvUnit(3, 32, 3, stride=2)
        self.conv2d_2a = ConvUnit(32, 32, 3)
        self.conv2d_2b = ConvUnit(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = ConvUnit(64, 80, 1)
        self.conv2d_4a = ConvUnit(80, 192, 3)
        self.conv2d_4b = ConvUnit(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = mixed_6a()
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = mixed_7a()
        self.repeat_3 = nn.Sequential(*(block8() for _ in range(5)))
        self.block8 = block8(scale=1.0, relu=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.6)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        x = self.dropout(self.avgpool_1a(x)).flatten(1)
        return self.last_bn(self.last_linear(x))


def build(state_dict: StateDict) -> InceptionResnetV1:
    """Build the network with the weights of `state_dict`.

    Raises CheckpointMismatch, naming the keys, if they belong to another network.
    """
    return load(InceptionResnetV1(), state_dict, "FaceNet (Inception-ResNet v1)")


def official(checkpoint: Mapping[str, Any], classes: int) -> dict[str, Tensor]:
    """Read a released file: a bare state dict whose classifier over `classes` people only tells the variants apart.

    Raises CheckpointMismatch if the classifier is that of another variant.
    """
    state_dict = unwrap(checkpoint)
    logits = state_dict.pop("logits.weight", None)
    state_dict.pop("logits.bias", None)
    if logits is not None and len(logits) != classes:
        raise CheckpointMismatch(
            f"logits.weight has {len(logits)} classes, this variant {classes}: "
            "8631 belong to facenet-vggface2, 10575 to facenet-casia-webface. Register the file under that name."
        )
    return state_dict


# The detection box, stretched to a square. The released LFW figures were measured with a margin of 14 of the 160 pixels.
FACENET_160 = BoxTemplate("facenet-160", 160, margin=7 / (160 - 14), square=False)
_PREPROCESS = Preprocess(FACENET_160, Color.RGB, mean=(127.5,) * 3, std=(128.0,) * 3)


def _spec(variant: str, data: str, file: str, classes: int, lfw: str) -> ModelSpec:
    return ModelSpec(
        name=f"facenet-{variant}",
        role=Role.EMBED,
        title=f"FaceNet, Inception-ResNet v1 trained on {data}",
        licence=f"MIT (code); weights: none stated, trained on {data} (research data)",
        source=f"https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9 ({file})",
        paper="arXiv:1503.03832",
        build=build,
        official=partial(official, classes=classes),
        preprocess=_PREPROCESS,
        dimension=512,
        notes=f"LFW {lfw} as given by the source. The source clips the box to the photo, here black fills what lies outside.",
    )


FACENET_VGGFACE2 = _spec("vggface2", "VGGFace2", "20180402-114759-vggface2.pt", 8631, "0.9965")
FACENET_CASIA_WEBFACE = _spec("casia-webface", "CASIA-WebFace", "20180408-102900-casia-webface.pt", 10575, "0.9905")
SPECS = (FACENET_VGGFACE2, FACENET_CASIA_WEBFACE)
