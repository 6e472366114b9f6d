"""LightCNN: face embeddings of 256 numbers from Max-Feature-Map networks.

Wu, He, Sun, Tan, "A Light CNN for Deep Face Representation with Noisy Labels", TIFS 2018 (arXiv:1511.02683).
Released checkpoints: github.com/AlfredXiangWu/LightCNN, LightCNN-9, -29, -29 v2 and v4 (code MIT; the weights, trained on
MS-Celeb-1M and CASIA-WebFace, carry no licence of their own). No norm layers anywhere and no non-linearity but MFM.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load, unwrap
from models.spec import Color, ModelSpec, Preprocess, Role, StateDict
from models.template import BLACK, Rgb


class MaxFeatureMap(nn.Module):
    """Halve the channels by keeping the stronger of two filters at every position (Section III-A, eq. 2).

    `filter` gives (N, 2C, ...), the output is (N, C, ...). Acts as activation and as feature selection at once.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.filter = layer  # named as in the released checkpoints

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.filter(x).chunk(2, dim=1)
        return torch.maximum(first, second)


def mfm(channels: int, out: int, kernel: int = 3) -> MaxFeatureMap:
    """Convolve with MFM, keeping height and width."""
    return MaxFeatureMap(nn.Conv2d(channels, 2 * out, kernel, padding=kernel // 2))


def chain(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, by name."""
    return nn.Sequential(OrderedDict(layers))


def group(channels: int, out: int) -> nn.Sequential:
    """Network in network: mix the channels at each pixel, then look around."""
    return chain(conv_a=mfm(channels, channels, 1), conv=mfm(channels, out))


class ResBlock(nn.Module):
    """Two MFM convolutions beside the identity, with nothing after the sum. Keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = mfm(channels, channels)
        self.conv2 = mfm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


def res_blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(count)))


def max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(2, ceil_mode=True)


class MaxAveragePool(nn.Module):
    """The sum of 2x2 max and average pooling, which v2 and v4 use. (N, C, H, W) to (N, C, H // 2, W // 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)


def lightcnn_9() -> nn.Sequential:
    """Grey (N, 1, 128, 128) in 0..1 to embeddings (N, 256), not normalised."""
    features = [
        mfm(1, 48, 5), max_pool(),
        group(48, 96), max_pool(),
        group(96, 192), max_pool(),
        group(192, 128), group(128, 128), max_pool(),
    ]  # fmt: skip
    embedding = MaxFeatureMap(nn.Linear(128 * 8 * 8, 2 * 256))
    return chain(features=nn.Sequential(*features), flatten=nn.Flatten(), fc1=embedding, dropout=nn.Dropout(0.5))


def _residual(stem: nn.Module, mix: Callable[[int, int], nn.Module], pool: Callable[[], nn.Module]) -> nn.Sequential:
    # The body that the three residual networks share, up to the flattened 128 x 8 x 8.
    return chain(
        conv1=stem, pool1=pool(),
        block1=res_blocks(48, 1), group1=mix(48, 96), pool2=pool(),
        block2=res_blocks(96, 2), group2=mix(96, 192), pool3=pool(),
        block3=res_blocks(192, 3), group3=mix(192, 128),
        block4=res_blocks(128, 4), group4=mix(128, 128), pool4=pool(),
        flatten=nn.Flatten(),
    )  # fmt: skip


def lightcnn_29() -> nn.Sequential:
    """Grey (N, 1, 128, 128) in 0..1 to embeddings (N, 256), not normalised."""
    network = _residual(mfm(1, 48, 5), group, max_pool)
    network.add_module("fc", MaxFeatureMap(nn.Linear(128 * 8 * 8, 2 * 256)))
    network.add_module("dropout", nn.Dropout(0.5))
    return network


def lightcnn_29v2() -> nn.Sequential:
    """Grey (N, 1, 128, 128) in 0..1 to embeddings (N, 256), not normalised."""
    network = _residual(mfm(1, 48, 5), group, MaxAveragePool)
    network.add_module("fc", nn.Linear(128 * 8 * 8, 256))
    return network


def lightcnn_v4() -> nn.Sequential:
    """BGR (N, 3, 128, 128) in 0..1 to embeddings (N, 256), not normalised."""
    network = _residual(mfm(3, 48), mfm, MaxAveragePool)
    network.add_module("fc", nn.Linear(128 * 8 * 8, 256))
    return network


def build(state_dict: StateDict, network: Callable[[], nn.Sequential]) -> nn.Sequential:
    """Build one of the variants with the weights of `state_dict`.

    Raises CheckpointMismatch, naming the keys, if they belong to another variant.
    """
    return load(network(), state_dict, f"LightCNN ({network.__name__})")


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a released training checkpoint: the weights lie under `state_dict`, DataParallel's prefix and classifier go."""
    state_dict = unwrap(checkpoint, "state_dict")
    return {key: value for key, value in state_dict.items() if key not in {"fc2.weight", "fc2.bias"}}


def official_v4(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the released v4 file, whose conv2 to conv5 stand where the other networks have group1 to group4."""
    groups = {f"conv{number + 1}": f"group{number}" for number in (1, 2, 3, 4)}
    parts = ((key.partition("."), value) for key, value in official(checkpoint).items())
    return {groups.get(head, head) + dot + rest: value for (head, dot, rest), value in parts}


@dataclass(frozen=True)
class EyesMouthTemplate:
    """A crop in which the eyes are level and two midpoints lie fixed: between the eyes and between the mouth's corners.

    The eyes' midpoint comes to (x, eyes_y), the mouth's to the height mouth_y, in crop pixels; the distance between the eyes
    stays free. This is how the authors align (face_verification_experiment, code/face_db_align.m). Midpoints at one height
    give a singular transform.
    """

    name: str
    size: int
    x: float
    eyes_y: float
    mouth_y: float
    fill: Rgb = field(default=BLACK, repr=False)

    def transforms(self, boxes: Tensor, landmarks: Tensor) -> Tensor:
        points = landmarks.double()
        eyes, mouth = points[:, :2].mean(dim=1), points[:, 3:].mean(dim=1)
        right = F.normalize(points[:, 1] - points[:, 0], dim=1)
        down = torch.stack([-right[:, 1], right[:, 0]], dim=1)
        height = ((mouth - eyes) * down).sum(dim=1)
        scale = height / (self.mouth_y - self.eyes_y)  # photo pixels per crop pixel
        linear = torch.stack([right, down], dim=2) * scale[:, None, None]
        shift = eyes[..., None] - linear @ linear.new_tensor([[self.x], [self.eyes_y]])
        return torch.cat([linear, shift], dim=2).float()


LIGHTCNN_128 = EyesMouthTemplate("lightcnn-128", 128, x=64, eyes_y=40, mouth_y=88)
_GREY = Preprocess(LIGHTCNN_128, Color.GREY, mean=(0.0,), std=(255.0,))
_BGR = Preprocess(LIGHTCNN_128, Color.BGR, mean=(0.0,) * 3, std=(255.0,) * 3)


def _spec(
    variant: str,
    network: Callable[[], nn.Sequential],
    preprocess: Preprocess,
    read: Callable[[Mapping[str, Any]], dict[str, Tensor]],
    lfw: str,
) -> ModelSpec:
    return ModelSpec(
        name=f"lightcnn-{variant}",
        role=Role.EMBED,
        title=f"LightCNN {variant}",
        licence="MIT (code); weights: none stated, trained on MS-Celeb-1M and CASIA-WebFace (research data)",
        source="https://github.com/AlfredXiangWu/LightCNN (Google Drive links in its README)",
        paper="arXiv:1511.02683",
        build=partial(build, network=network),
        official=read,
        preprocess=preprocess,
        dimension=256,
        notes=f"LFW {lfw} % at equal error rate as given by the source.",
    )


LIGHTCNN_9 = _spec("9", lightcnn_9, _GREY, official, "98.70")
LIGHTCNN_29 = _spec("29", lightcnn_29, _GREY, official, "99.40")
LIGHTCNN_29V2 = _spec("29v2", lightcnn_29v2, _GREY, official, "99.43")
LIGHTCNN_V4 = _spec("v4", lightcnn_v4, _BGR, official_v4, "99.67")
SPECS = (LIGHTCNN_9, LIGHTCNN_29, LIGHTCNN_29V2, LIGHTCNN_V4)
