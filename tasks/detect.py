"""Detect: find the faces of several photos at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from models.detection.mtcnn import MTCNN
from tasks.decode import Photo
from tasks.execution.inference import load_for_inference
from tasks.execution.transfer import upload
from tasks.model_version import ModelVersion
from tasks.photo_faces import BOXES, LANDMARKS, SCORES, PhotoFaces


@dataclass(frozen=True)
class Decoded:
    """A photo with its pixels, as decoded for detection, and its bytes for a second look at full resolution.

    `uploaded` are the picture's pixels on the device of detection, once that has seen them.
    """

    photo: PhotoFaces
    picture: Photo
    data: bytes
    uploaded: Tensor | None = None

    @property
    def pixels(self) -> Tensor:
        """(H, W, 3) uint8 RGB, where they are nearest to who computes."""
        return torch.from_numpy(self.picture.pixels) if self.uploaded is None else self.uploaded

    @property
    def factor(self) -> float:
        """How much larger the original is than the decoded picture."""
        return self.picture.scale


class Detect:
    """Find faces with one model version.

    Adds `boxes` (n, 4), `landmarks` (n, 5, 2) and `scores` (n,), float32, in pixels of the original, largest face first.
    """

    def __init__(self, version: ModelVersion, device: str) -> None:
        self.network, self.device = cast(MTCNN, load_for_inference(version, device)), device

    def __call__(self, pictures: Sequence[Decoded]) -> list[Decoded]:
        start = time.perf_counter()
        pixels = [upload(item.picture.pixels, self.device) for item in pictures]
        detections = self.network.detect(pixels)
        share = (time.perf_counter() - start) / max(len(pictures), 1)
        results = []
        for item, there, found in zip(pictures, pixels, detections, strict=True):
            arrays = {
                BOXES: to_original(found.boxes.numpy().reshape(-1, 2, 2), item.factor).reshape(-1, 4),
                LANDMARKS: to_original(found.landmarks.numpy(), item.factor),
                SCORES: found.scores.numpy(),
            }
            results.append(replace(item, photo=item.photo.having(**arrays).timed("detect", share), uploaded=there))
        return results


def to_original(points: np.ndarray, factor: float) -> np.ndarray:
    """From pixels of the picture as decoded to pixels of the original (pixel edges, not centres, are what scales)."""
    return ((points + 0.5) * factor - 0.5).astype(np.float32)
