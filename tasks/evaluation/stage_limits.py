"""The limits of a job on this machine: each stage alone, and each model's forwards alone, at their best batch sizes."""

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
from tasks.detect import Decoded
from tasks.execution.inference import load_for_inference
from tasks.execution.side_by_side import side_by_side, torch_threads
from tasks.job import Job
from tasks.model_version import ModelVersion
from tasks.photo_faces import TO_RESTORE, PhotoFaces, crop, restored_crop
from tasks.pipeline import PAGE, face_stages, thread_count
from tasks.prepare import GROUP, Prepare
from tasks.record import crop_writers, record

BATCHES = (GROUP, 4 * GROUP)  # photos at a time, of a stage alone


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


def loading_seconds(job: Job) -> float:
    """Build every stage as a job in this process does before its first photograph."""
    start = time.perf_counter()
    Prepare(job).close()
    for _, build in face_stages(job):
        build()
    return time.perf_counter() - start


class Stages:
    """Takes all pending images of a job through its stages, a stage after the other, and keeps what each takes alone.

    `seconds`: in as many threads as a job in this process has, with nothing beside it: no queue, no claim, no other stage; each
    at the best of several batch sizes.
    """

    def __init__(self, catalog: Catalog, job: Job) -> None:
        self.catalog, self.job, self.threads = catalog, job, thread_count(job.settings)
        self.seconds: dict[str, float] = {}

    def through(self) -> list[PhotoFaces]:
        """Do all work but recording; returns the photos with all that was found of them."""
        with self.catalog.read() as session:
            pages = pending_pages(session, self.job.collection_id, self.job.run_id, PAGE)
        with closing(Prepare(self.job)) as prepare, torch_threads(max(1, self.job.settings.cpu_count // self.threads)):
            groups = [group for page in pages for group in prepare.take(page)]
            decoded = [item for group in groups for item in prepare.decoded(group)]
            pictures = [item for item in decoded if isinstance(item, Decoded)]
            self._alone("decode", lambda batch: [prepare.decode(item.photo, item.data) for item in batch], pictures)
            photos = self._alone("detect", prepare.detect, pictures)
            photos = self._alone("align and assess", prepare.finish, photos)
            self._split("align and assess", ("align", "assess"), photos)
            for name, build in face_stages(self.job):
                photos = self._alone(name, build(), photos)
        finished = [photo for group in groups for photo in group.finished]
        return [*finished, *(item for item in decoded if isinstance(item, PhotoFaces)), *photos]

    def record(self, photos: Sequence[PhotoFaces]) -> None:
        """Record what was found, which can be done only once. The catalog has one writer."""
        crops = self.job.crops()
        start = time.perf_counter()
        with crop_writers() as writers:
            for k in range(0, len(photos), PAGE):
                record(self.catalog, crops, self.job, photos[k : k + PAGE], writers)
        self.seconds["record"] = time.perf_counter() - start

    def _split(self, both: str, names: Sequence[str], photos: Sequence[PhotoFaces]) -> None:
        """Share out what two stages took together as they have counted it themselves."""
        counted = {name: sum(photo.seconds[name] for photo in photos) for name in names}
        taken = self.seconds.pop(both) / max(sum(counted.values()), 1e-9)
        self.seconds |= {name: seconds * taken for name, seconds in counted.items()}

    def _alone(self, name: str, work: Callable[[Any], list[Any]], items: Sequence[Any]) -> list[Any]:
        self.seconds[name] = float("inf")
        for size in BATCHES:
            batches = [items[k : k + size] for k in range(0, len(items), size)]
            start = time.perf_counter()
            done = [result for batch in side_by_side(batches, work, self.threads) for result in batch]
            self.seconds[name] = min(self.seconds[name], time.perf_counter() - start)
        return done


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
