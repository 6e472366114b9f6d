"""Embed: one vector of unit length per face; the restored faces are embedded beside, to see whom they still resemble."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.spec import ModelSpec
from tasks.guard import guarded
from tasks.install import ModelVersion, load_network
from tasks.photo_faces import (
    EMBEDDING,
    IDENTITY_SIMILARITY,
    RESTORED_FACES,
    PhotoFaces,
    crop,
    restored_crop,
)

BATCH = 32  # crops per forward: beyond it a CPU gains nothing and memory grows


class Embed:
    """Embed aligned crops with one model version.

    In: crops of the version's template (n, S, S, 3) uint8. Out: `embedding` (n, D) float32, unit length; for restored
    faces also the cosine similarity between the restored and the original face.
    """

    def __init__(self, version: ModelVersion, device: str) -> None:
        assert version.spec.preprocess is not None
        self.spec, self.template = version.spec, version.spec.preprocess.template
        self.network = load_network(version).to(device)
        self.device = device

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        return guarded("embed", photos, self._embed)

    def _embed(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        original, restored = crop(self.template), restored_crop(self.template)
        crops = [photo.arrays[original] for photo in photos]
        crops += [photo.arrays[restored] for photo in photos if restored in photo.arrays]
        vectors = iter(_split(embed(self.network, self.spec, np.concatenate(crops), self.device), crops))
        embeddings = [next(vectors) for _ in photos]
        results = []
        for photo, embedding in zip(photos, embeddings, strict=True):
            arrays = {EMBEDDING: embedding}
            if restored in photo.arrays:
                rows = photo.arrays[RESTORED_FACES]
                arrays[IDENTITY_SIMILARITY] = (embedding[rows] * next(vectors)).sum(axis=1)
            results.append(photo.having(**arrays))
        return results


def embed(network: nn.Module, spec: ModelSpec, crops: np.ndarray, device: str) -> np.ndarray:
    """Embed crops (N, S, S, 3) uint8 of the spec's template as (N, D) float32 of unit length.

    Raises:
        FloatingPointError: if the network gives a vector that is not finite, or of length zero.
    """
    assert spec.preprocess is not None
    parts = []
    with torch.inference_mode():
        for start in range(0, len(crops), BATCH):
            faces = spec.preprocess(torch.from_numpy(np.ascontiguousarray(crops[start : start + BATCH])).to(device))
            vectors = network(faces).float()
            parts.append((vectors + network(faces.flip(3)).float() if spec.mirror else vectors).cpu())
        if not parts:
            return np.zeros((0, spec.dimension or 0), np.float32)
        vectors = torch.cat(parts)
        lengths = vectors.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(vectors).all()) or bool((lengths < 1e-6).any()):
        raise FloatingPointError("the network gave an embedding that is not finite or of length zero")
    return (vectors / lengths).numpy()


def _split(rows: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum([len(part) for part in like])[:-1])
