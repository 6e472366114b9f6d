"""Embed: one vector of unit length per face; the restored faces are embedded beside, to see whom they still resemble."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.spec import EMBEDDING as EMBEDDING_OUTPUT
from models.spec import ModelSpec
from tasks.describe import Columns, columns, in_photos, joined
from tasks.execution.cuda_graph import recorded
from tasks.execution.guard import guarded, halving
from tasks.execution.inference import load_for_inference
from tasks.execution.transfer import upload
from tasks.model_version import ModelVersion
from tasks.photo_faces import (
    EMBEDDING,
    EMBEDDING_BESIDE,
    IDENTITY_SIMILARITY,
    RESTORED_EMBEDDING,
    RESTORED_FACES,
    PhotoFaces,
    crop,
    handed_out,
    of_all,
    restored_crop,
)

log = logging.getLogger("visage")
BATCH = 32  # crops per forward: beyond it a CPU gains nothing and memory grows


class Embed:
    """Embed aligned crops with one model version.

    In: crops of the version's template (n, S, S, 3) uint8. Out: `embedding` (n, D) float32, unit length; for restored
    faces also that of the restored face, and the cosine similarity between the two. `describing`, a version whose network gives
    the embedding too (`Recipe.shared`), takes the embedder's place, and its `wanted` estimates come of the same forward.
    """

    def __init__(
        self,
        version: ModelVersion,
        device: str,
        describing: ModelVersion | None = None,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        assert version.spec.preprocess is not None
        self.spec, self.template = version.spec, version.spec.preprocess.template
        self.describing, self.device = describing, device
        self.wanted = wanted if describing is None else wanted & {a.name for a in describing.spec.attributes}
        self.network = load_for_inference(describing or version, device)
        asked = () if describing is None else (self.wanted | {EMBEDDING_OUTPUT},)
        self.forward = recorded(self.network, self.spec, BATCH, device, *asked)

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        return guarded("embed", photos, self._embed)

    def _embed(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        original, restored = crop(self.template), restored_crop(self.template)
        crops = [photo.arrays[original] for photo in photos]
        again = [photo.arrays[restored] for photo in photos if restored in photo.arrays]
        described: list[Columns] = []
        if self.describing is None:
            vectors = iter(
                _split(embed(self.forward, self.spec, np.concatenate(crops + again), self.device), crops + again)
            )
        else:
            own = embed(partial(self._both, described), self.spec, np.concatenate(crops), self.device)
            alone = (
                embed(self._embedding, self.spec, np.concatenate([*crops[:0], *again]), self.device)
                if again
                else own[:0]
            )
            vectors = iter([*_split(own, crops), *_split(alone, again)])
        embeddings = [next(vectors) for _ in photos]
        results = []
        for photo, embedding in zip(photos, embeddings, strict=True):
            arrays = {EMBEDDING: embedding}
            if restored in photo.arrays:
                rows = photo.arrays[RESTORED_FACES]
                arrays[RESTORED_EMBEDDING] = next(vectors)
                arrays[IDENTITY_SIMILARITY] = (embedding[rows] * arrays[RESTORED_EMBEDDING]).sum(axis=1)
            results.append(photo.having(**arrays))
        return results if self.describing is None else in_photos(results, self.describing, joined(described))

    def _both(self, described: list[Columns], faces: Tensor) -> Tensor:
        """Return the embeddings of a batch, and note what else the same forward says of it."""
        assert self.describing is not None
        assert self.describing.spec.interpret is not None
        raw: Mapping[str, Any] = self.forward(faces, self.wanted | {EMBEDDING_OUTPUT})
        described.append(columns(self.describing, self.describing.spec.interpret(raw), self.wanted))
        return raw[EMBEDDING_OUTPUT]

    def _embedding(self, faces: Tensor) -> Tensor:
        return self.network(faces, frozenset({EMBEDDING_OUTPUT}))[EMBEDDING_OUTPUT]


class EmbedBeside:
    """Embed aligned crops with a second version beside the first: while an upgrade is under way, or may be rolled back.

    In: crops of the version's template (n, S, S, 3) uint8. Out: `embedding.beside` (n, E) float32, unit length. A photo that it
    fails on goes on without: the backfill comes back to its faces.
    """

    def __init__(self, version: ModelVersion, device: str) -> None:
        self.embed = Embed(version, device)

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        good = [photo for photo in photos if photo.failure is None and not photo.shared]
        done = iter(halving(good, self._embed, _left_out))
        return [next(done) if photo.failure is None and not photo.shared else photo for photo in photos]

    def _embed(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        crops = of_all(photos, crop(self.embed.template))
        return handed_out(
            photos, {EMBEDDING_BESIDE: embed(self.embed.forward, self.embed.spec, crops, self.embed.device)}
        )


def _left_out(photo: PhotoFaces, error: Exception) -> PhotoFaces:
    log.warning("%s: not embedded by the second version", photo.key, exc_info=error)
    return photo


def embed(network: Callable[[Tensor], Tensor], spec: ModelSpec, crops: np.ndarray, device: str) -> np.ndarray:
    """Embed crops (N, S, S, 3) uint8 of the spec's template as (N, D) float32 of unit length.

    Raises:
        FloatingPointError: if the network gives a vector that is not finite, or of length zero.
    """
    assert spec.preprocess is not None
    parts, size = [], BATCH // 2 if spec.mirror else BATCH
    with torch.inference_mode():
        for start in range(0, len(crops), size):
            faces = spec.preprocess(upload(np.ascontiguousarray(crops[start : start + size]), device))
            if spec.mirror:
                own, mirrored = network(torch.cat([faces, faces.flip(3)])).float().chunk(2)
                parts.append(own + mirrored)
            else:
                parts.append(network(faces).float())
        if not parts:
            return np.zeros((0, spec.dimension or 0), np.float32)
        vectors = torch.cat(parts).cpu()
        lengths = vectors.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(vectors).all()) or bool((lengths < 1e-6).any()):
        raise FloatingPointError("the network gave an embedding that is not finite or of length zero")
    return (vectors / lengths).numpy()


def _split(rows: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum([len(part) for part in like])[:-1])
