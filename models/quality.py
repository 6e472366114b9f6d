"""Quality: how much a face in a photo can tell, as one number in 0..1 and the parts that it is made of.

Every part is a monotone formula of something measured on the photo, so that a low score can be explained. Parts judge the
picture, not the person: sharpness is relative to the face's own contrast, and clipping counts only what is black or white.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.constant import constant
from models.template import PORTRAIT_512

QUALITY_TEMPLATE = PORTRAIT_512.scaled("ffhq-256", 256)  # eyes 63 pixels apart

# Rows and columns of the crop from brow to chin and cheek to cheek: no hair, collar or background. The filter for the finest
# octave reaches 2 pixels further.
REACH = 2
FACE = (slice(97 - REACH, 205 + REACH), slice(77 - REACH, 180 + REACH))

LUMA = (0.299, 0.587, 0.114)
# A sharp portrait has about 0.07; blurring the reference photos with a sigma of 1 takes the median to 0.045, 2 to 0.025.
HALF_SHARPNESS = 0.04
# Shrunk to 16 pixels between the eyes, a face's dlib descriptor moves 0.22 from where it was (0.14 at 24 pixels, 0.32 at 12);
# two alignments of one face lie 0.13 apart, two people at least 0.5. Median over the 15 larger faces of the reference photos.
HALF_SIZE = 16.0
# Grey levels. The coarse steps of a common JPEG's luminance table (ITU-T T.81 Annex K: 10 to 16) are then as large as features.
HALF_CONTRAST = 15.0
# Luma that counts as lost in shadow or glare: what JPEG's rounding can leave of 0 and 255.
SHADOW, GLARE = 4, 251
# Degrees. At 30 off the camera's axis, one half of the face begins to hide (the far eye is foreshortened by more than a tenth).
POSE_SPREAD = 30.0

# Detail first: it cannot be had back. The detector's score saturates and only breaks ties.
WEIGHTS = {"sharpness": 0.3, "size": 0.25, "frontalness": 0.2, "exposure": 0.15, "detection": 0.1}

# Eyes, nose tip and mouth corners in units of the distance between the eyes: x right, y down, z away from the camera. x and y
# are FFHQ's mean frontal face; the depths are about those of MediaPipe's canonical face (nose 0.64, mouth 0.03 before the
# eyes' corners; the pupils lie a little before these).
FACE_3D = ((-0.5, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.587, -0.6), (-0.444, 1.042, -0.05), (0.444, 1.042, -0.05))


@dataclass(frozen=True)
class Quality:
    """Quality of N faces; every field is (N,) float32.

    In 0..1, higher is better: `overall`, and its factors `sharpness`, `size`, `frontalness`, `exposure`, `detection`.
    Raw: `inter_eye_distance` in photo pixels; `yaw` (positive: looks to image-right), `pitch` (positive: up) and `roll`
    (positive: clockwise) in degrees; `brightness`, the mean luma in 0..1.
    """

    overall: Tensor
    sharpness: Tensor
    size: Tensor
    frontalness: Tensor
    exposure: Tensor
    detection: Tensor
    inter_eye_distance: Tensor
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    brightness: Tensor

    def parts(self) -> dict[str, Tensor]:
        """The factors that `overall` is made of, by name."""
        return {name: getattr(self, name) for name in WEIGHTS}


def assess_quality(crops: Tensor, landmarks: Tensor, scores: Tensor) -> Quality:
    """Assess N faces.

    `crops` (N, 256, 256, 3) uint8 RGB, aligned to QUALITY_TEMPLATE; `landmarks` (N, 5, 2) in photo pixels; `scores` (N,) of
    the detector, 0..1. Crops may lie on another device than these two, where the results do. overall = product of the parts,
    each to the power of its weight (a weighted geometric mean: no strength makes up for a part that is zero).

    Raises:
        ValueError: if the crops are not of QUALITY_TEMPLATE's size.
    """
    size = QUALITY_TEMPLATE.size
    if crops.shape[1:] != (size, size, 3) or crops.dtype != torch.uint8:
        raise ValueError(
            f"crops are {tuple(crops.shape)} {crops.dtype}; quality is measured on (N, {size}, {size}, 3) torch.uint8,"
            " aligned to QUALITY_TEMPLATE"
        )
    landmarks = landmarks.float()
    luma = _luma(crops)
    yaw, pitch, roll = _pose(landmarks)
    inter_eye_distance = torch.linalg.vector_norm(landmarks[:, 0] - landmarks[:, 1], dim=1)
    brightness = luma.mean(dim=(1, 2)) / 255
    sharp, exposure, brightness = (
        part.to(landmarks.device) for part in (_sharpness(luma), _exposure(luma), brightness)
    )
    parts = {
        "sharpness": sharp,
        "size": _saturating(inter_eye_distance, HALF_SIZE),
        "frontalness": torch.exp(-(yaw.square() + pitch.square()) / (2 * POSE_SPREAD**2)),
        "exposure": exposure,
        "detection": scores.float(),
    }
    overall = torch.stack([parts[name].pow(weight) for name, weight in WEIGHTS.items()]).prod(dim=0)
    return Quality(
        overall, **parts, inter_eye_distance=inter_eye_distance, yaw=yaw, pitch=pitch, roll=roll, brightness=brightness
    )


def sharpness(crops: Tensor) -> Tensor:
    """The quality's part `sharpness` (N,) float32, 0..1, of crops (N, 256, 256, 3) uint8 aligned to QUALITY_TEMPLATE."""
    return _sharpness(_luma(crops))


def _luma(crops: Tensor) -> Tensor:
    """Luma (N, H, W) float32 in 0..255 of the crops' faces."""
    return crops[:, FACE[0], FACE[1]].float() @ constant(LUMA, crops.device)


def _sharpness(luma: Tensor) -> Tensor:
    return _saturating(_detail(luma), HALF_SHARPNESS)


def _saturating(value: Tensor, half: float) -> Tensor:
    """Rise from 0 towards 1, with one half at `half` and the steepest slope below it (a Hill curve of order 2)."""
    return value.square() / (value.square() + half**2)


def _detail(luma: Tensor) -> Tensor:
    """Strength of a face's finest octave relative to its contrast, (N,), from luma (N, H, W).

    The octave is what a 5x5 binomial filter takes away. Of its magnitudes, the geometric mean of two quantiles counts. The
    95th percentile sees the edges of eyes and mouth. The lower quartile sees skin: smoothed by blur, enlarging and above all
    JPEG, whose block edges are strong but few, so that they raise any mean (variance of Laplacian included) but not a
    quartile. Pixels beyond the photo's border, which are black, are left out.
    """
    kernel = constant((1.0, 4.0, 6.0, 4.0, 1.0), luma.device) / 16
    smooth = F.conv2d(luma[:, None], kernel.outer(kernel)[None, None])[:, 0]
    inner = (slice(None), slice(REACH, -REACH), slice(REACH, -REACH))
    face = luma[inner].flatten(1)
    unseen = face == 0
    count = (~unseen).float().sum(dim=1, keepdim=True)
    finest = (face - smooth.flatten(1)).abs().masked_fill(unseen, torch.inf)
    deviation = (face - face.sum(dim=1, keepdim=True) / count).masked_fill(unseen, 0)
    contrast = (deviation.square().sum(dim=1) / count[:, 0]).sqrt()
    skin, edges = _quantiles(finest, count, (0.25, 0.95))
    # Less contrast than one grey level is rounding, not detail. A face wholly outside (NaN) has none.
    return ((skin * edges).sqrt() / contrast.clamp_min(1)).nan_to_num(nan=0.0)


def _quantiles(rows: Tensor, counts: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Quantiles (shares, N) of the `counts` (N, 1) least values of every row of (N, M), linear between two neighbours.

    On a CPU NumPy sorts: its vector code takes a twentieth of the time of torch's.
    """
    rising = torch.from_numpy(np.sort(rows.numpy(), axis=1)) if rows.device.type == "cpu" else rows.sort(dim=1).values
    ranks = (constant(shares, rows.device) * (counts - 1)).clamp_min(0)
    below, above = (rising.gather(1, rank.long()) for rank in (ranks.floor(), ranks.ceil()))
    return below.lerp(above, ranks.frac()).T


def _exposure(luma: Tensor) -> Tensor:
    """Share of the face that is neither lost in shadow nor in glare, times its saturating contrast.

    What lies beyond the photo's border is black and counts as lost.
    """
    face = luma.flatten(1)
    lost = ((face <= SHADOW) | (face >= GLARE)).float().mean(dim=1)
    contrast = (face - face.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()
    return (1 - lost) * _saturating(contrast, HALF_CONTRAST)


def _pose(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Yaw, pitch and roll in degrees, each (N,), from five landmarks and an average face.

    Pose from orthography and scaling (DeMenthon and Davis, IJCV 1995, Section 2), without iterations: the rows of the scaled
    rotation are the least-squares map from the model to the image. People differ: expect errors of 5 to 10 degrees in pitch.
    """
    model = constant(FACE_3D, landmarks.device)
    model = model - model.mean(dim=0)
    image = landmarks - landmarks.mean(dim=1, keepdim=True)
    rows = F.normalize((torch.linalg.pinv(model) @ image).transpose(1, 2), dim=2)
    right, down = rows.unbind(dim=1)
    away = torch.linalg.cross(right, down)
    yaw = torch.atan2(-right[:, 2], away[:, 2])
    pitch = torch.atan2(down[:, 2], torch.hypot(right[:, 2], away[:, 2]))
    eyes = landmarks[:, 1] - landmarks[:, 0]
    return yaw.rad2deg(), pitch.rad2deg(), torch.atan2(eyes[:, 1], eyes[:, 0]).rad2deg()
