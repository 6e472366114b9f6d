"""The pipeline: decode -> detect -> align -> assess -> restore -> embed -> describe -> record.

The first four are fused in one actor, so that pixels of whole photos never travel; only crops do. The same stages run in
two engines: as Ray Data actor pools, one loaded model per actor, or in this process when the job is too small to be worth
the start of Ray. The driver records: the catalog has one writer.
"""

import gc
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from infra.catalog.database import Catalog
from infra.catalog.images import Work, count_pending, pending, pending_pages
from infra.ray_cluster import connected, gpus, set_threads
from tasks.describe import Describe
from tasks.embed import Embed
from tasks.job import Job
from tasks.photo_faces import PhotoFaces, pack, unpack
from tasks.prepare import GROUP, Prepare
from tasks.record import record
from tasks.restore import Restore

PAGE = 64  # images that one call of the fused actor works through, at most
Stage = Callable[[Sequence[PhotoFaces]], list[PhotoFaces]]
Page = tuple[int, int]


def face_stages(job: Job) -> list[tuple[str, Callable[[], Stage]]]:
    """The stages that work on crops, in order, each as a way to build it where it runs."""
    recipe = job.recipe
    assert recipe.embedder.spec.preprocess is not None
    embed_template = recipe.embedder.spec.preprocess.template
    stages: list[tuple[str, Callable[[], Stage]]] = []
    if recipe.restorer is not None:
        stages.append(("restore", partial(Restore, recipe.restorer, embed_template, job.device)))
    stages.append(("embed", partial(Embed, recipe.embedder, job.device)))
    if recipe.describers:
        stages.append(("describe", partial(Describe, recipe.describers, recipe.attributes, job.device)))
    return stages


def process(catalog: Catalog, job: Job, on_photos: Callable[[Sequence[PhotoFaces]], None] = lambda photos: None) -> str:
    """Process and record every pending image of the job's collection; returns the engine used, or "none".

    Nothing pending loads no model and reads no image.
    """
    with catalog.read() as session:
        count = count_pending(session, job.collection_id)
    if not count:
        return "none"
    settings = job.settings
    large = count >= settings.ray_from_images or bool(settings.ray_address)
    keep = partial(_record_all, catalog, job, on_photos)
    gc.collect()
    gc.freeze()  # half a million objects of imported modules, which the collector would walk through again and again
    if settings.engine == "inline" or (settings.engine == "auto" and not large):
        keep(_in_process(catalog, job))
        return "inline"
    with connected(settings.ray_address or None, settings.cpu_count):
        even = count // (4 * settings.cpu_count)  # pages so small that no actor ends long after all others
        keep(_execute(job, _pages(catalog, job, min(PAGE, max(even, 1)))))
        # Pages whose worker died twice (out of memory, a crash in a decoder) are missing: once more, image by image,
        # so that only the one that kills its worker is lost.
        keep(_execute(job, _pages(catalog, job, 1)))
    keep(_lost(catalog, job))
    return "ray"


def _record_all(
    catalog: Catalog, job: Job, on_photos: Callable[[Sequence[PhotoFaces]], None], stream: Generator[list[PhotoFaces]]
) -> None:
    """Record a stream of photos, each batch while the next is computed; when this returns, all are in the catalog."""
    crops = job.crops()
    with ThreadPoolExecutor(1, thread_name_prefix="record") as writer, closing(stream):
        recording: Future[None] | None = None
        for photos in stream:
            if recording is not None:
                recording.result()
            recording = writer.submit(record, catalog, crops, job, photos)
            on_photos(photos)
        if recording is not None:
            recording.result()


def _pages(catalog: Catalog, job: Job, size: int) -> list[Page]:
    with catalog.read() as session:
        return pending_pages(session, job.collection_id, job.run_id, size)


def _in_process(catalog: Catalog, job: Job) -> Generator[list[PhotoFaces]]:
    prepare = Prepare(job)
    stages = [build() for _, build in face_stages(job)]
    for page in _pages(catalog, job, PAGE):
        for photos in prepare(page):
            yield reduce(lambda batch, stage: stage(batch), stages, photos)


def _lost(catalog: Catalog, job: Job) -> Generator[list[PhotoFaces]]:
    for page in _pages(catalog, job, PAGE):
        with catalog.read() as session:
            yield [_killed_its_worker(work) for work in pending(session, job.collection_id, job.run_id, page)]


def _killed_its_worker(work: Work) -> PhotoFaces:
    message = (
        f"{work.key}: the process that worked on it died, three times, and alone at the end (out of memory, or a crash in a "
        "decoder). It is not tried again until it is replaced; if it is a good picture, please report it."
    )
    return PhotoFaces(work.image_id, work.key, work.size).failed("process", "worker_died", message, retryable=False)


def _execute(job: Job, pages: Sequence[Page]) -> Generator[list[PhotoFaces]]:
    """One Ray Data execution: pages of image ids in, photos out, in whatever order they are done."""
    if not pages:
        return
    import ray.data  # noqa: PLC0415 - a small job is done before Ray is imported

    stages = face_stages(job)
    share = _Shares.of(round(ray.cluster_resources()["CPU"]), gpus(), [name for name, _ in stages], most=len(pages))
    # A page that kills its worker must not be retried for ever, and Ray has no newer name for saying so yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    # A block, which is what is repeated when a worker dies, is one page.
    rows = [{"first": first, "last": last} for first, last in pages]
    dataset = ray.data.from_items(rows, override_num_blocks=len(pages))
    dataset = dataset.map_batches(_PrepareActor, fn_constructor_args=(job,), batch_size=1, **share.options("prepare"))
    for name, build in stages:
        dataset = dataset.map_batches(
            _StageActor, fn_constructor_args=(build,), batch_size=GROUP, **share.options(name)
        )
    for batch in dataset.iter_batches(batch_size=GROUP, batch_format="numpy", prefetch_batches=1):
        yield [unpack(data) for data in batch["photo"]]


@dataclass(frozen=True)
class _Shares:
    """How many actors each stage has, and which share of a processor and of a GPU each of them reserves."""

    actors: dict[str, int]
    cpus: float
    gpus: float

    @classmethod
    def of(cls, cpus: int, gpus: int, stages: Sequence[str], most: int) -> "_Shares":
        """Without GPUs one actor per processor where the work is (detection, restoration), a quarter of it elsewhere; with
        GPUs one of each stage per GPU, sharing it. `most`: of no stage more than that.

        Each computes with one thread: on a CPU, processes side by side beat threads inside one forward.
        """
        heavy, light = (gpus, gpus) if gpus else (cpus, max(1, cpus // 4))
        actors = {name: min(heavy if name in ("prepare", "restore") else light, most) for name in ("prepare", *stages)}
        return cls(actors, 0.9 * cpus / sum(actors.values()), 1 / len(actors) if gpus else 0)

    def options(self, stage: str) -> dict[str, Any]:
        from ray.data import ActorPoolStrategy  # noqa: PLC0415

        return {
            "compute": ActorPoolStrategy(size=self.actors[stage]),
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "batch_format": "numpy",
            "max_task_retries": 1,  # by default for ever, even for an image that kills whoever touches it
        }


class _PrepareActor:
    """The fused front of the pipeline as Ray Data runs it: pages in, packed photos out."""

    def __init__(self, job: Job) -> None:
        set_threads(1)
        self.prepare = Prepare(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for first, last in zip(batch["first"], batch["last"], strict=True):
            for photos in self.prepare((int(first), int(last))):
                yield _packed(photos)


class _StageActor:
    """A stage as Ray Data runs it: packed photos in and out."""

    def __init__(self, build: Callable[[], Stage]) -> None:
        set_threads(1)
        self.stage = build()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _packed(self.stage([unpack(data) for data in batch["photo"]]))


def _packed(photos: Sequence[PhotoFaces]) -> dict[str, np.ndarray]:
    column = np.empty(len(photos), dtype=object)
    column[:] = [pack(photo) for photo in photos]
    return {"photo": column}
