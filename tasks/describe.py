"""Describe: estimates of a face's attributes. A sensitive attribute that is not switched on is not computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.spec import ModelSpec
from tasks.guard import guarded
from tasks.install import ModelVersion, load_network
from tasks.photo_faces import PhotoFaces, crop, estimate

BATCH = 64


class Describe:
    """Estimate attributes with several model versions, each run once per face.

    In: the crops of each version's template. Out: `value`, `confidence` and, for categories, `probabilities` of every
    attribute in `wanted`.
    """

    def __init__(self, versions: Sequence[ModelVersion], wanted: frozenset[str], device: str) -> None:
        self.models = [(version.spec, load_network(version).to(device)) for version in versions]
        self.wanted, self.device = wanted, device

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        return guarded("describe", photos, self._describe)

    def _describe(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        counts = [photo.face_count for photo in photos]
        arrays: dict[str, np.ndarray] = {}
        for spec, network in self.models:
            assert spec.preprocess is not None
            assert spec.interpret is not None
            crops = np.concatenate([photo.arrays[crop(spec.preprocess.template)] for photo in photos])
            for start in range(0, len(crops), BATCH):
                with torch.inference_mode():
                    batch = torch.from_numpy(np.ascontiguousarray(crops[start : start + BATCH])).to(self.device)
                    estimates = spec.interpret(self._forward(spec, network, spec.preprocess(batch)))
                for name in self.wanted & estimates.keys():
                    parts = {
                        "value": estimates[name].value,
                        "confidence": estimates[name].confidence,
                        "probabilities": estimates[name].probabilities,
                    }
                    for what, part in parts.items():
                        if part is not None:
                            column = estimate(name, what)
                            rows = part.float().cpu().numpy()
                            arrays[column] = np.concatenate([arrays[column], rows]) if column in arrays else rows
        ends = np.cumsum(counts)
        return [
            photo.having(**{name: rows[end - count : end] for name, rows in arrays.items() if count})
            for photo, count, end in zip(photos, counts, ends, strict=True)
        ]

    def _forward(self, spec: ModelSpec, network: nn.Module, batch: Tensor) -> Any:
        """A network of many attributes computes those that are wanted; one of a single attribute runs or does not."""
        names = frozenset(attribute.name for attribute in spec.attributes)
        return network(batch) if len(names) == 1 else network(batch, names & self.wanted)
