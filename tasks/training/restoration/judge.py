"""Restoring faces of people whom the training does not see, beside doing nothing and beside bicubic enlargement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.restoration.degradation import CLASSIC, degrade, draw, target
from models.similarity import psnr, ssim

FACES = 64  # more would cost more than they tell
SHOWN = 8
SEED = 20240917  # of their degradations: the same whatever the training's seed
BATCH = 16


@dataclass(frozen=True)
class Held:
    """Held-out faces, each (N, S, S, 3) uint8: clean, degraded (enlarged bilinearly), and enlarged bicubically."""

    clean: Tensor
    degraded: Tensor
    bicubic: Tensor


def held_out(crops: np.ndarray, rows: Sequence[int]) -> Held:
    """Degrade some of the held-out crops (N, S, S, 3) uint8, by the classic model."""
    rng = np.random.default_rng(SEED)
    chosen = sorted(rng.permutation(rows)[:FACES].tolist())
    views: dict[str, list[Tensor]] = {"clean": [], "degraded": [], "bicubic": []}
    for row in chosen:
        face = torch.from_numpy(np.array(crops[row])).permute(2, 0, 1).float() / 255
        degradation = draw(rng, CLASSIC, face.shape[1])
        views["clean"].append(target(face, degradation))
        views["degraded"].append(degrade(face, degradation))
        views["bicubic"].append(degrade(face, degradation, enlarge="bicubic"))
    return Held(**{name: as_pixels(torch.stack(faces) * 2 - 1) for name, faces in views.items()})


def as_input(pixels: Tensor) -> Tensor:
    """Pixels (N, S, S, 3) uint8 to faces (N, 3, S, S) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(faces: Tensor) -> Tensor:
    """Faces (N, 3, S, S) in [-1, 1] to pixels (N, S, S, 3) uint8."""
    return ((faces.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def in_batches(network: Callable[[Tensor], Tensor], pixels: Tensor, device: torch.device) -> Tensor:
    """A network's result for pixels (N, S, S, 3) uint8, on the CPU."""
    with torch.inference_mode():
        return torch.cat([network(as_input(part.to(device))).cpu() for part in pixels.split(BATCH)])


class Judge:
    """Measures what a network makes of held-out faces. What is measured of the alternatives never changes: it is kept."""

    def __init__(
        self, held: Held, perceptual: nn.Module | None, recogniser: nn.Module | None, device: torch.device
    ) -> None:
        self.held, self.perceptual, self.recogniser, self.device = held, perceptual, recogniser, device
        self.embedded = None if recogniser is None else in_batches(recogniser, held.clean, device)
        self.alternatives = {
            f"{name}/{measure}": value
            for name, pixels in (("nothing", held.degraded), ("bicubic", held.bicubic))
            for measure, value in self.measure(pixels).items()
        }

    def dictionary(self, network: nn.Module) -> dict[str, float]:
        """How well the first stage rebuilds clean faces."""
        pixels = as_pixels(in_batches(network, self.held.clean, self.device))
        return {f"dictionary/{name}": value for name, value in self.measure(pixels).items()}

    def restorer(self, network: nn.Module) -> tuple[dict[str, float], np.ndarray]:
        """How well the second stage restores, beside the alternatives; and a picture of the first faces."""
        restored = as_pixels(in_batches(network, self.held.degraded, self.device))
        metrics = {f"restored/{name}": value for name, value in self.measure(restored).items()}
        columns = (self.held.degraded, self.held.bicubic, restored, self.held.clean)
        return metrics | self.alternatives, grid([column[:SHOWN] for column in columns])

    def measure(self, pixels: Tensor) -> dict[str, float]:
        """PSNR in dB and SSIM, the perceptual distance, and the cosine of the embeddings, against the clean faces."""
        measures: dict[str, Any] = {"psnr": psnr(pixels, self.held.clean), "ssim": ssim(pixels, self.held.clean)}
        if self.perceptual is not None:
            pairs = torch.cat([pixels, self.held.clean], dim=3)

            def distance(faces: Tensor) -> Tensor:
                assert self.perceptual is not None
                distances: Tensor = self.perceptual(faces[:, :3], faces[:, 3:])
                return distances

            measures["perceptual"] = in_batches(distance, pairs, self.device)
        if self.recogniser is not None and self.embedded is not None:
            vectors = in_batches(self.recogniser, pixels, self.device)
            measures["identity"] = (vectors * self.embedded).sum(dim=1)
        return {name: float(values.mean()) for name, values in measures.items()}


def grid(columns: Sequence[Tensor]) -> np.ndarray:
    """Pictures side by side: a column for each of `columns` (N, S, S, 3) uint8, a row for each face; (N S, columns S, 3)."""
    return torch.cat([column.flatten(0, 1) for column in columns], dim=1).numpy()
