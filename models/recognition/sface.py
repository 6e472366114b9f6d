"""SFace: face embeddings of 512 numbers, trained with the sigmoid-constrained hypersphere loss (models.losses.sface).

Zhong, Deng, Hu, Zhao, Li, Wen, "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", TIP 2021
(arXiv:2205.12010). Backbones of github.com/zhongyy/SFace (PyTorch): IR-50 and IR-101 in the manner of face.evoLVe, and
MobileFaceNet (Chen, Liu, Gao, Han, CCBR 2018, arXiv:1804.07573). The repository has no licence and publishes no weights:
these entries read what its training code writes. The SFace of OpenCV's model zoo is another network (MobileNet, 128-D).
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from models.checkpoint import load, unwrap
from models.spec import Color, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112


class Unit(nn.Module):
    """Residual unit of IR: norm, conv, PReLU, conv (with the stride), norm; no norm before the PReLU, nothing after the sum.

    (N, C, H, W) to (N, width, H / stride, W / stride). The shortcut subsamples unless the width changes.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if channels != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IR(nn.Module):
    """Faces (N, 3, 112, 112) to embeddings (N, 512), not normalised. `units` per stage of width 64, 128, 256 and 512."""

    def __init__(self, units: Sequence[int]) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        body, channels = [], 64
        for width, count in zip((64, 128, 256, 512), units, strict=True):
            body += [Unit(channels, width, 2), *(Unit(width, width, 1) for _ in range(count - 1))]
            channels = width
        self.body = nn.Sequential(*body)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.5), nn.Flatten(), nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


class ConvUnit(nn.Module):
    """Convolution, norm, PReLU; a 3x3 keeps the size but for its stride, a 7x7 reduces its 7x7 map to one pixel."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(channels, out, kernel, stride, 1 if kernel == 3 else 0, groups=groups, bias=False)
        self.batchnorm = nn.BatchNorm2d(out, eps=1e-3)
        self.relu: nn.Module = nn.PReLU(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.batchnorm(self.conv2d(x)))


class LinearUnit(ConvUnit):
    """A ConvUnit without its PReLU."""

    def __init__(self, channels: int, out: int, kernel: int, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, groups=groups)
        self.relu = nn.Identity()


class Bottleneck(nn.Module):
    """Widen, look around per channel, narrow (MobileNetV2's inverted bottleneck); with `residual` the input is added."""

    def __init__(self, channels: int, out: int, hidden: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.conv_sep = ConvUnit(channels, hidden, 1)
        self.conv_dw = ConvUnit(hidden, hidden, 3, stride, groups=hidden)
        self.conv_proj = LinearUnit(hidden, out, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_proj(self.conv_dw(self.conv_sep(x)))
        return x + out if self.residual else out


class Stage(nn.Module):
    """`count` residual bottlenecks one after the other, named as in the checkpoints: model.block0, model.block1, ..."""

    def __init__(self, channels: int, hidden: int, count: int) -> None:
        super().__init__()
        self.model = nn.Sequential()
        for index in range(count):
            self.model.add_module(f"block{index}", Bottleneck(channels, channels, hidden, residual=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class MobileFaceNet(nn.Module):
    """Faces (N, 3, 112, 112) to embeddings (N, 512), not normalised (arXiv:1804.07573, table 1, with 512 numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = ConvUnit(3, 64, 3, stride=2)
        self.conv_2_dw = ConvUnit(64, 64, 3, groups=64)
        self.dconv_23 = Bottleneck(64, 64, 128, stride=2)
        self.res_3 = Stage(64, 128, 4)
        self.dconv_34 = Bottleneck(64, 128, 256, stride=2)
        self.res_4 = Stage(128, 256, 6)
        self.dconv_45 = Bottleneck(128, 128, 512, stride=2)
        self.res_5 = Stage(128, 256, 2)
        self.conv_6sep = ConvUnit(128, 512, 1)
        self.conv_6dw7_7 = LinearUnit(512, 512, 7, groups=512)
        self.pre_fc1 = nn.Linear(512, 512)
        self.fc1 = nn.BatchNorm1d(512, eps=2e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_2_dw(self.conv_1(x))
        x = self.res_3(self.dconv_23(x))
        x = self.res_4(self.dconv_34(x))
        x = self.res_5(self.dconv_45(x))
        x = self.conv_6dw7_7(self.conv_6sep(x)).flatten(1)
        return self.fc1(self.pre_fc1(x))


def build(state_dict: StateDict, network: Callable[[], nn.Module], name: str) -> nn.Module:
    """Build one of the backbones with the weights of `state_dict`.

    Raises CheckpointMismatch, naming the keys, if they belong to another one.
    """
    return load(network(), state_dict, name)


# The PyTorch code centres the pixels and multiplies by 0.078125 = 10/128, ten times the usual factor: its weights expect that.
_PREPROCESS = Preprocess(ARCFACE_112, Color.RGB, mean=(127.5,) * 3, std=(12.8,) * 3)


def _spec(variant: str, backbone: str, network: Callable[[], nn.Module]) -> ModelSpec:
    return ModelSpec(
        name=f"sface-{variant}",
        role=Role.EMBED,
        title=f"SFace, {backbone}",
        licence="none stated (code); weights: none published",
        source="https://github.com/zhongyy/SFace (Backbone_*_checkpoint.pth as its PyTorch training code writes them)",
        paper="arXiv:2205.12010",
        build=partial(build, network=network, name=f"SFace ({backbone})"),
        official=unwrap,
        preprocess=_PREPROCESS,
        dimension=512,
        notes="Not the SFace of OpenCV's model zoo, which is another network with 128 numbers.",
    )


SFACE_IR_50 = _spec("ir-50", "IR-50", partial(IR, (3, 4, 14, 3)))
SFACE_IR_101 = _spec("ir-101", "IR-101", partial(IR, (3, 13, 30, 3)))
SFACE_MOBILEFACENET = _spec("mobilefacenet", "MobileFaceNet", MobileFaceNet)
SPECS = (SFACE_IR_50, SFACE_IR_101, SFACE_MOBILEFACENET)
