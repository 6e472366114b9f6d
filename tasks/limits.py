"""The limit of a job on this machine: decoding alone, and each model's forwards alone at their best batch size."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from infra.catalog.database import Catalog
from infra.catalog.images import pending_pages
from models.detection.mtcnn import MTCNN
from models.template import Template
from tasks.decode import decode
from tasks.inference import load_for_inference
from tasks.install import ModelVersion
from tasks.job import Job
from tasks.photo_faces import TO_RESTORE, PhotoFaces, crop, restored_crop
from tasks.pipeline import PAGE, AnyStage, face_stages, through
from tasks.prepare import Prepare


@dataclass
class Forward:
    """A model with all its inputs, and the batch sizes that may be best."""

    name: str
    inputs: Sequence[Any] | Tensor
    run: Callable[[Any], object]
    sizes: tuple[int, ...]
    batch: int = 0

    def seconds(self, inputs: Sequence[Any] | Tensor, size: int) -> float:
        """Time one pass over `inputs` in batches of `size`."""
        batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                self.run(batch)
        return time.perf_counter() - start

    def choose(self) -> None:
        """Find the best batch size on some of the inputs, the better of two passes each."""
        some = self.inputs[: 2 * max(self.sizes)]
        taken = {size: min(self.seconds(some, size) for _ in range(2)) for size in self.sizes}
        self.batch = min(taken, key=taken.__getitem__)


def forwards(job: Job, files: Sequence[bytes], photos: Sequence[PhotoFaces]) -> list[Forward]:
    """All models of a job with what they are to compute: `photos` have been through the stages with all their crops."""
    recipe = job.recipe
    detector = cast(MTCNN, load_for_inference(recipe.detector))
    pictures = [decode(data, long_side=job.settings.detect_long_side).pixels for data in files]
    found = [Forward("detect", [torch.from_numpy(pixels) for pixels in pictures], detector.detect, (1, 4, 16))]
    if recipe.restorer is not None:
        found.append(_on_crops("restore", recipe.restorer, photos, (1, 2, 4), [lambda _: TO_RESTORE]))
    found.append(_on_crops("embed", recipe.embedder, photos, (8, 32, 64), [crop, restored_crop]))
    found += [_on_crops(version.spec.name, version, photos, (16, 64)) for version in recipe.describers]
    found = [forward for forward in found if len(forward.inputs)]
    for forward in found:
        forward.choose()
    return found


def decoding_seconds(files: Sequence[bytes], long_side: int) -> float:
    """Decode files as large as detection needs them, one after the other."""
    start = time.perf_counter()
    for data in files:
        decode(data, long_side=long_side)
    return time.perf_counter() - start


def loading_seconds(job: Job) -> float:
    """Build every stage as a job in this process does before its first photograph."""
    start = time.perf_counter()
    Prepare(job).close()
    for _, build in face_stages(job):
        build()
    return time.perf_counter() - start


def processed(catalog: Catalog, job: Job) -> list[PhotoFaces]:
    """Take all pending images of a job through its stages, and keep everything instead of recording it."""
    with catalog.read() as session:
        pages = pending_pages(session, job.collection_id, job.run_id, PAGE)
    with closing(Prepare(job)) as prepare:
        stages: list[AnyStage] = [prepare, *(build() for _, build in face_stages(job))]
        return [photo for page in pages for group in prepare.take(page) for photo in through(stages, group)]


def _on_crops(
    name: str,
    version: ModelVersion,
    photos: Sequence[PhotoFaces],
    sizes: tuple[int, ...],
    views: Sequence[Callable[[Template], str]] = (crop,),
) -> Forward:
    """A model that works on crops, in these views of its template."""
    network, spec = load_for_inference(version), version.spec
    assert spec.preprocess is not None
    columns = [view(spec.preprocess.template) for view in views]
    crops = [photo.arrays[column] for column in columns for photo in photos if column in photo.arrays]
    size = spec.preprocess.template.size
    pixels = np.concatenate([np.zeros((0, size, size, 3), np.uint8), *crops])

    def run(faces: Tensor) -> None:
        network(faces)
        if spec.mirror:
            network(faces.flip(3))

    return Forward(name, spec.preprocess(torch.from_numpy(pixels)), run, sizes)
