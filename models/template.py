"""Crop geometry: how a face's box and five landmarks say which part of the photo a network wants to see.

A template turns detections into affine transforms from crop pixels to photo pixels; `models.alignment.align` samples them.
Coordinates are pixel centres: the pixel in column 0 lies at x = 0.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

Points = tuple[tuple[float, float], ...]
Rgb = tuple[int, int, int]
BLACK: Rgb = (0, 0, 0)


class Template(Protocol):
    """A crop of `size` x `size` pixels, defined relative to a detection."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def fill(self) -> Rgb:
        """The colour of what lies outside of the photo."""
        ...

    def transforms(self, boxes: Tensor, landmarks: Tensor) -> Tensor:
        """Return transforms (N, 2, 3) float32 from crop pixels to photo pixels.

        Boxes (N, 4) are x1, y1, x2, y2; landmarks (N, 5, 2) are x, y; both in photo pixels.
        """
        ...


def similarity_transforms(source: Tensor, target: Tensor) -> Tensor:
    """Fit rotation, scale and shift that carry `source` points onto `target` points with least squared error.

    Both (N, P, 2) (or (P, 2), shared by all); returns (N, 2, 3) of the dtype of `target`. Without reflection this is
    Umeyama's solution (PAMI 1991, eq. 40-42), which in the plane is one complex division. Coinciding source points give zeros.
    """
    source = source.to(target.dtype).expand_as(target)
    source_mean, target_mean = source.mean(dim=1, keepdim=True), target.mean(dim=1, keepdim=True)
    s, t = source - source_mean, target - target_mean
    norm = (s * s).sum(dim=(1, 2)).clamp_min(torch.finfo(target.dtype).tiny)
    a = (s * t).sum(dim=(1, 2)) / norm
    b = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(dim=1) / norm
    linear = torch.stack([torch.stack([a, -b], dim=1), torch.stack([b, a], dim=1)], dim=1)
    shift = target_mean.transpose(1, 2) - linear @ source_mean.transpose(1, 2)
    return torch.cat([linear, shift], dim=2)


@dataclass(frozen=True)
class LandmarkTemplate:
    """A crop whose `points` come to lie on the five landmarks as closely as rotation, scale and shift allow.

    `points`: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner, in crop pixels. Errors are
    counted in the photo, from crop to photo, as dlib does (`get_face_chip_details`).
    """

    name: str
    size: int
    points: Points
    fill: Rgb = field(default=BLACK, repr=False)  # contracts hold it apart, where it is not black

    def transforms(self, boxes: Tensor, landmarks: Tensor) -> Tensor:
        return similarity_transforms(torch.tensor(self.points, dtype=torch.float64), landmarks.double()).float()

    def scaled(self, name: str, size: int) -> "LandmarkTemplate":
        """The same view of the face at another resolution (pixel edges, not centres, are what scales)."""
        factor = size / self.size
        points = tuple(((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5) for x, y in self.points)
        return replace(self, name=name, size=size, points=points)


@dataclass(frozen=True)
class CropFittedTemplate(LandmarkTemplate):
    """The same with errors counted in the crop, from photo to crop: how crops are made for ArcFace and FFHQ.

    The less a face is like the template, the smaller it is in such a crop: a median of 1.4% beside `LandmarkTemplate` over
    334 faces of LFW, 4.4% at the 95th percentile.
    """

    def transforms(self, boxes: Tensor, landmarks: Tensor) -> Tensor:
        points = torch.tensor(self.points, dtype=torch.float64).expand(len(landmarks), -1, -1)
        return _inverse(similarity_transforms(landmarks.double(), points)).float()


def _inverse(similarities: Tensor) -> Tensor:
    """The inverses (N, 2, 3) of similarities (N, 2, 3); not finite where one has no scale."""
    linear, shift = similarities[:, :, :2], similarities[:, :, 2:]
    back = linear.transpose(1, 2) / torch.linalg.det(linear)[:, None, None]
    return torch.cat([back, -back @ shift], dim=2)


@dataclass(frozen=True)
class BoxTemplate:
    """An upright crop around the detection box, without rotation.

    The box is made square by lengthening its shorter side (if `square`), then grows on every side by `margin` times its
    side and by `margin_pixels` photo pixels. Without `square`, both axes are stretched to `size` independently.
    """

    name: str
    size: int
    margin: float = 0.0
    margin_pixels: float = 0.0
    square: bool = True
    fill: Rgb = field(default=BLACK, repr=False)

    def transforms(self, boxes: Tensor, landmarks: Tensor) -> Tensor:
        boxes = boxes.double()
        centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        if self.square:
            sides = sides.amax(dim=1, keepdim=True).expand(-1, 2)
        sides = sides * (1 + 2 * self.margin) + 2 * self.margin_pixels
        scale = sides / self.size
        shift = centre - sides / 2 + scale / 2 - 0.5
        return torch.cat([torch.diag_embed(scale), shift[..., None]], dim=2).float()


ARCFACE_112 = CropFittedTemplate(
    "arcface-112", 112,
    ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)),
)  # fmt: skip
FFHQ_512 = CropFittedTemplate(
    "ffhq-512", 512,
    ((192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935), (201.26117, 371.41043), (313.08905, 371.15118)),
)  # fmt: skip
# The same as facexlib cuts it for restorers: on the grey that its `align_warp_face` lays beyond the photo's border, (135, 133,
# 132) in BGR order. A little blue, and with it RestoreFormer was published and is used.
FACEXLIB_512 = replace(FFHQ_512, name="facexlib-512", fill=(132, 133, 135))


# The same view for what is our own: quality, stored crops, and Real-ESRGAN, which was trained on whole pictures.
PORTRAIT_512 = LandmarkTemplate("ffhq-512", 512, FFHQ_512.points)


def _dlib(name: str, size: int, padding: float) -> LandmarkTemplate:
    # MTCNN's points as they lie in dlib's 150 px chip of padding 0.25, measured over 27 faces; u is dlib's unit face.
    chip_150 = ((47.901, 45.885), (102.685, 46.145), (75.911, 77.956), (49.716, 102.822), (100.595, 102.803))

    def rescaled(q: float) -> float:
        return (padding + q / 150 * 1.5 - 0.25) / (2 * padding + 1) * size

    return LandmarkTemplate(name, size, tuple((rescaled(x), rescaled(y)) for x, y in chip_150))


DLIB_150 = _dlib("dlib-150", 150, padding=0.25)
DLIB_64 = _dlib("dlib-64", 64, padding=0.2)
DLIB_32 = _dlib("dlib-32", 32, padding=0.2)
