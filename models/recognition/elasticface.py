"""ElasticFace: face embeddings of 512 numbers from IResNet, trained with margins drawn at random.

Boutros, Damer, Kirchbuchner, Kuijper, "ElasticFace: Elastic Margin Loss for Deep Face Recognition", CVPR Workshops 2022
(arXiv:2109.09416); network: the improved residual units of Deng et al., "ArcFace", CVPR 2019 (arXiv:1801.07698).
Released checkpoints: github.com/fdbtrs/ElasticFace, four IResNet-100 trained on MS1MV2, all called 295672backbone.pth:
the file cannot say which loss it was trained with. Licence of code and weights: CC BY-NC-SA 4.0, so not for commercial use.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models.checkpoint import load, unwrap
from models.spec import CheckpointMismatch, Color, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


class Unit(nn.Module):
    """Improved residual unit: norm, conv, norm, PReLU, conv (with the stride), norm; nothing after the sum.

    (N, C, H, W) to (N, width, H / stride, W / stride).
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(out)) + self.downsample(x)


def stage(channels: int, width: int, count: int) -> nn.Sequential:
    """`count` units, the first of which halves height and width."""
    return nn.Sequential(Unit(channels, width, 2), *(Unit(width, width, 1) for _ in range(count - 1)))


class IResNet(nn.Module):
    """Faces (N, 3, 112, 112) to embeddings (N, 512), not normalised. `units` per stage set the depth, see UNITS."""

    def __init__(self, units: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        self.layer1 = stage(64, 64, units[0])
        self.layer2 = stage(64, 128, units[1])
        self.layer3 = stage(128, 256, units[2])
        self.layer4 = stage(256, 512, units[3])
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


def build(state_dict: StateDict) -> IResNet:
    """Build the IResNet that `state_dict` belongs to: its depth is read from the keys.

    Raises CheckpointMismatch, naming the keys, if it belongs to none.
    """
    counts = tuple(
        sum(f"layer{n}.{i}.conv1.weight" in state_dict for i in range(max(UNITS[100]))) for n in (1, 2, 3, 4)
    )
    depth = next((depth for depth, units in UNITS.items() if units == counts), None)
    if depth is None:
        known = ", ".join(f"{units} (IResNet-{depth})" for depth, units in UNITS.items())
        raise CheckpointMismatch(
            f"The keys layer1.*.conv1.weight to layer4.*.conv1.weight count {counts} units; known are {known}. "
            "Is this the checkpoint of another model?"
        )
    return load(IResNet(UNITS[depth]), state_dict, f"IResNet-{depth}")


def build_100(state_dict: StateDict) -> IResNet:
    """Build the IResNet-100 of the released checkpoints.

    Raises CheckpointMismatch, naming the keys, if `state_dict` belongs to another network or depth.
    """
    return load(IResNet(UNITS[100]), state_dict, "ElasticFace (IResNet-100)")


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a released backbone: a bare state dict, or one in a training checkpoint, as arcface_torch writes it."""
    return unwrap(checkpoint, "state_dict", "state_dict_backbone")


def trains(parameter: str) -> bool:
    """The last normalisation's scale stays 1 in training, as the authors have it."""
    return parameter != "features.weight"


_PREPROCESS = Preprocess(ARCFACE_112, Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3)


def _elasticface(variant: str, loss: str) -> ModelSpec:
    return ModelSpec(
        name=f"elasticface-{variant}",
        role=Role.EMBED,
        title=f"{loss}, IResNet-100",
        licence="CC-BY-NC-SA-4.0 (code and weights): not for commercial use",
        source=f"https://github.com/fdbtrs/ElasticFace (Google Drive folder {loss} of its README, 295672backbone.pth)",
        paper="arXiv:2109.09416",
        build=build_100,
        official=official,
        preprocess=_PREPROCESS,
        trains=trains,
        dimension=512,
        notes="All four released files have one name and one layout: nothing in them tells which loss they come from.",
    )


ELASTICFACE_ARC = _elasticface("arc", "ElasticFace-Arc")
ELASTICFACE_COS = _elasticface("cos", "ElasticFace-Cos")
ELASTICFACE_ARC_PLUS = _elasticface("arc-plus", "ElasticFace-Arc+")
ELASTICFACE_COS_PLUS = _elasticface("cos-plus", "ElasticFace-Cos+")
IRESNET = ModelSpec(
    name="iresnet",
    role=Role.EMBED,
    title="IResNet-18, -34, -50 or -100, as the weights have it",
    licence="that of the weights",
    source="weights of your own in ElasticFace's key names",
    paper="arXiv:1801.07698",
    build=build,
    official=official,
    preprocess=_PREPROCESS,
    trains=trains,
    dimension=512,
)
SPECS = (ELASTICFACE_ARC, ELASTICFACE_COS, ELASTICFACE_ARC_PLUS, ELASTICFACE_COS_PLUS, IRESNET)
