"""What is measured on every face without learning: pose, size, light, colour, and how much of the face is to be seen.

Pose, sharpness, exposure, brightness and the distance between the eyes are those that the quality score is made of
(`models.quality`); they are computed there, once. There are no weights: the entry's `settings` count the versions of the
formulas, so that their results carry a contract as a network's do.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.constant import constant
from models.covered import covered_share
from models.quality import Quality
from models.spec import CheckpointMismatch, Estimate, ModelSpec, Role, StateDict
from models.vocabulary import (
    BEYOND_BORDER,
    BRIGHTNESS,
    COLOR,
    COVERED,
    EXPOSURE,
    INTER_EYE_DISTANCE,
    PITCH,
    ROLL,
    SHARPNESS,
    VISIBILITY,
    YAW,
    without_confidence,
)

# Up to this angle off the camera's axis both halves of a face are seen about as well (see `models.quality.POSE_SPREAD`).
SEEN_WHOLE = 30.0  # degrees
STEP = 4  # colour is judged on every fourth pixel of every fourth row
LUMA_BINS = 16
GREY_CHROMA = 2.0  # grey levels; the rounding of colours leaves less than 1 in a grey photo
# Grey levels of chroma that the tone, as a function of luma, leaves unexplained. Over the faces of the reference photos: at
# most 2.7 where they were toned and stored as JPEG of quality 40, at least 5.1 as they are.
TONED_CHROMA = 3.5


def measured(quality: Quality, crops: Tensor, beyond_border: Tensor) -> Mapping[str, Estimate]:
    """State by name, without a confidence, what is measured of N faces.

    `quality` of the faces, the `crops` (N, S, S, 3) uint8 RGB that it was assessed on, and the share (N,) of each face that
    lies beyond the photo's border. Results lie where `quality` does.
    """
    covered, colored = (part.to(quality.overall.device) for part in (covered_share(crops), color(crops)))
    values = {
        INTER_EYE_DISTANCE: quality.inter_eye_distance,
        SHARPNESS: quality.sharpness,
        EXPOSURE: quality.exposure,
        BRIGHTNESS: quality.brightness,
        PITCH: quality.pitch,
        YAW: quality.yaw,
        ROLL: quality.roll,
        BEYOND_BORDER: beyond_border,
        COVERED: covered,
        VISIBILITY: visible_share(quality.yaw, quality.pitch, beyond_border, covered),
        COLOR: colored,
    }
    return {attribute.name: without_confidence(value.float()) for attribute, value in values.items()}


def visible_share(yaw: Tensor, pitch: Tensor, beyond_border: Tensor, covered: Tensor) -> Tensor:
    """Share (N,) in 0..1 of a face that is to be seen: inside the photo, not foreshortened, not covered; angles in degrees.

    A plane that is turned shows the cosine of the angle; 1 up to SEEN_WHOLE, 0 from 90 degrees on. A face that is cut or far
    turned looks covered as well: the same loss is not counted twice, so that the smaller of the two shares holds.
    """
    turned = yaw.deg2rad().cos() * pitch.deg2rad().cos()
    whole = (turned / math.cos(math.radians(SEEN_WHOLE))).clamp(0, 1)
    return torch.minimum(whole * (1 - beyond_border), 1 - covered)


def color(crops: Tensor) -> Tensor:
    """Class indices (N,) int64 of COLOR for crops (N, S, S, 3) uint8 RGB.

    Grey: hardly any chroma. Toned: chroma that follows from the luma, as in sepia prints. Black, such as lies beyond the
    photo's border, speaks for none.
    """
    if not len(crops):
        return torch.zeros(0, dtype=torch.int64, device=crops.device)
    pixels = crops[:, ::STEP, ::STEP].flatten(1, 2).float()
    luma = pixels @ constant((0.299, 0.587, 0.114), crops.device)
    chroma = torch.stack([0.564 * (pixels[..., 2] - luma), 0.713 * (pixels[..., 0] - luma)], dim=2)  # BT.601's Cb, Cr
    seen = (pixels.amax(dim=2) > 0).float()
    bins = torch.arange(len(crops), device=crops.device)[:, None] * LUMA_BINS + (luma * LUMA_BINS / 256).long()

    def per_bin(values: Tensor) -> Tensor:
        return torch.zeros(len(crops) * LUMA_BINS, device=crops.device).index_add_(0, bins.flatten(), values.flatten())

    counts = per_bin(seen).clamp_min(1)
    tone = torch.stack([per_bin(chroma[..., i] * seen) / counts for i in (0, 1)], dim=1)[bins]
    total = seen.sum(dim=1).clamp_min(1)
    strength, unexplained = (
        ((part.square().sum(dim=2) * seen).sum(dim=1) / total).sqrt() for part in (chroma, chroma - tone)
    )
    colored = torch.where(unexplained < TONED_CHROMA, COLOR.classes.index("toned"), COLOR.classes.index("color"))
    return torch.where(strength < GREY_CHROMA, COLOR.classes.index("grey"), colored)


def _build(state_dict: StateDict) -> nn.Module:
    raise CheckpointMismatch("'measured' has no weights: it is computed from pixels and landmarks.")


MEASURED = ModelSpec(
    name="measured",
    role=Role.DESCRIBE,
    title="Measured on the photo, without learning: pose, size, light, colour, what is to be seen of the face",
    licence="Apache-2.0",
    source="Visage",
    paper="",
    build=_build,
    settings="formulas 2",
    attributes=(
        INTER_EYE_DISTANCE, SHARPNESS, EXPOSURE, BRIGHTNESS, PITCH, YAW, ROLL, BEYOND_BORDER, COVERED, VISIBILITY,
        COLOR,
    ),
)  # fmt: skip
