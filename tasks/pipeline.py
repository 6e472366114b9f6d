"""The pipeline: decode -> detect -> align -> assess -> restore -> embed -> describe -> record.

The first four are fused, so that pixels of whole photos never travel; only crops do. The same stages run in two engines: as
Ray Data actor pools, or side by side in threads of this process when the job is too small to be worth the start of Ray. With
GPUs each stage has actors of its own; without, nothing is won by that, and an actor does all stages. The driver records: the
catalog has one writer.
"""

import gc
import pickle
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, cast

import numpy as np
from structlog.contextvars import bind_contextvars

from infra import logs
from infra.allocator import keep_freed_memory
from infra.catalog.database import Catalog
from infra.catalog.images import Work, claimed_by, count_pending, pending, pending_pages
from infra.patience import patient
from infra.ray_cluster import connected, device, gpus, nodes, processors, set_threads
from infra.ray_room import RoomLost, await_room, check_room, watched
from infra.settings import Settings
from tasks.describe import Describe
from tasks.embed import Embed, EmbedBeside
from tasks.execution.guard import set_time_limit
from tasks.execution.side_by_side import side_by_side, torch_threads
from tasks.job import Job
from tasks.photo_faces import PhotoFaces, pack, unpack
from tasks.prepare import GROUP, Prepare
from tasks.record import crop_writers, record
from tasks.restore import Restore

log = logs.logger()

PAGE = 64  # images that one call of an actor works through, at most
APART = 4 * GROUP  # photos that a stage of its own takes at once: on a GPU, their faces then fill whole batches
FRONT = "front"  # the fused stages before those that `face_stages` names
MOST_THREADS = 4  # each holds the pixels of up to 16 photos; what has more processors and much to do takes Ray
Stage = Callable[[Sequence[PhotoFaces]], list[PhotoFaces]]
AnyStage = Callable[[Any], list[PhotoFaces]]  # the first takes what was claimed, the others what the one before it gave
Page = tuple[int, int]


def face_stages(job: Job) -> list[tuple[str, Callable[[], Stage]]]:
    """The stages that work on crops, in order, each as a way to build it where it runs."""
    recipe = job.recipe
    assert recipe.embedder.spec.preprocess is not None
    embed_template = recipe.embedder.spec.preprocess.template
    stages: list[tuple[str, Callable[[], Stage]]] = []
    if recipe.restorer is not None:
        stages.append(("restore", partial(Restore, recipe.restorer, embed_template, job.device)))
    stages.append(("embed", partial(Embed, recipe.embedder, job.device, recipe.shared, recipe.attributes)))
    if job.companion is not None:
        stages.append(("embed beside", partial(EmbedBeside, job.companion, job.device)))
    if describers := [version for version in recipe.describers if version != recipe.shared]:
        stages.append(("describe", partial(Describe, describers, recipe.attributes, job.device, recipe.heads)))
    return stages


def engine_for(settings: Settings, count: int, crashes: int = 0) -> str:
    """Choose the engine for `count` pending images: "ray", "inline", or "none" where nothing is to do.

    `crashes`: so many runs before this one died in a row. After two, the work is done in processes of their own, so that a
    photo that kills whoever touches it is found out and does not end the next run as well.
    """
    if not count:
        return "none"
    if settings.engine != "auto":
        return settings.engine
    large = count >= settings.ray_from_images or bool(settings.ray_address)
    return "ray" if large or crashes >= 2 else "inline"


def process(
    catalog: Catalog, job: Job, engine: str, on_photos: Callable[[Sequence[PhotoFaces]], None] = lambda photos: None
) -> None:
    """Process and record every pending image of the job's collection with one of `engine_for`'s engines.

    "none" loads no model and reads no image.
    """
    if engine == "none":
        return
    keep = partial(_record_all, catalog, job, on_photos)
    gc.collect()
    gc.freeze()  # half a million objects of imported modules, which the collector would walk through again and again
    if engine == "inline":
        keep(_in_process(catalog, job))
        return
    while True:
        try:
            _on_ray(catalog, job, keep)
            break
        except RoomLost as lost:  # its connection took all that it had there with it
            log.warning("begun anew on the nodes that are left", reason=str(lost))
    keep(_lost(catalog, job))


def _on_ray(catalog: Catalog, job: Job, keep: Callable[[Generator[list[PhotoFaces]]], None]) -> None:
    settings = job.settings
    small = _count(catalog, job) // (4 * settings.cpu_count)  # pages so small that no actor ends long after all others
    # Pages whose worker died twice (out of memory, a crash in a decoder) are missing: once more, image by image, so that only
    # the one that kills its worker is lost. In a connection of its own: what is left of those that died may hold room.
    for size, alone in ((min(PAGE, max(small, 1)), False), (1, True)):
        if pages := _pages(catalog, job, size):
            with connected(settings.ray_address or None, settings.cpu_count):
                keep(_execute(job, pages, alone))


def _record_all(
    catalog: Catalog, job: Job, on_photos: Callable[[Sequence[PhotoFaces]], None], stream: Generator[list[PhotoFaces]]
) -> None:
    """Record a stream of photos, each batch while the next is computed; when this returns, all are in the catalog."""
    crops = job.crops()
    with crop_writers() as writers, ThreadPoolExecutor(1, "record") as recorder, closing(stream):
        recording: Future[None] | None = None
        for photos in stream:
            if recording is not None:
                recording.result()
            recording = recorder.submit(record, catalog, crops, job, photos, writers)
            on_photos(photos)
        if recording is not None:
            recording.result()


@patient
def _pages(catalog: Catalog, job: Job, size: int) -> list[Page]:
    with catalog.read() as session:
        return pending_pages(session, job.collection_id, job.run_id, size, job.keys)


@patient
def _count(catalog: Catalog, job: Job) -> int:
    with catalog.read() as session:
        return count_pending(session, job.collection_id, job.keys)


def _in_process(catalog: Catalog, job: Job) -> Generator[list[PhotoFaces]]:
    keep_freed_memory()
    threads = thread_count(job.settings)
    with torch_threads(max(1, job.settings.cpu_count // threads)):
        set_time_limit(job.settings.item_seconds, threads)
        with closing(Prepare(job, threads)) as prepare:
            stages: list[AnyStage] = [prepare, *(build() for _, build in face_stages(job))]
            groups = (group for page in _pages(catalog, job, PAGE) for group in prepare.take(page))
            with closing(side_by_side(groups, partial(through, stages), threads)) as results:
                yield from results


def thread_count(settings: Settings) -> int:
    """In how many threads a small job works: one a processor, and two at least, so that one reads while one computes."""
    return max(2, min(settings.cpu_count, MOST_THREADS))


def through(stages: Sequence[AnyStage], group: Any) -> list[PhotoFaces]:
    """Take a group that `Prepare` has claimed through all stages."""
    return cast(list[PhotoFaces], reduce(lambda taken, stage: stage(taken), stages, group))


def _lost(catalog: Catalog, job: Job) -> Generator[list[PhotoFaces]]:
    for page in _pages(catalog, job, PAGE):
        with catalog.read() as session:
            works = pending(session, job.collection_id, job.run_id, page, job.keys)
            contents = claimed_by(session, job.run_id, [work.image_id for work in works])
        yield [_killed_its_worker(work, contents.get(work.image_id)) for work in works]


def _killed_its_worker(work: Work, content_id: int | None) -> PhotoFaces:
    message = (
        "the process that worked on it died, three times, and alone at the end (out of memory, or a crash in a decoder). "
        "It is not tried again until it is replaced or 'visage retry' says so; if it is a good picture, please report it."
    )
    photo = PhotoFaces(work.image_id, work.key, work.size, content_id=content_id)
    return photo.failed("process", "worker_died", message, retryable=False)


def _execute(job: Job, pages: Sequence[Page], alone: bool) -> Generator[list[PhotoFaces]]:
    """One Ray Data execution: pages of image ids in, photos out, in whatever order they are done.

    `alone`: no process has more than one page in hand, so that none is lost with another that kills its worker.
    """
    import ray.data  # noqa: PLC0415 - a small job is done before Ray is imported

    names = [name for name, _ in face_stages(job)]
    share = await_room(lambda: _Shares.of(processors(), gpus(), names, most=len(pages), nodes=nodes()))
    # A page that kills its worker must not be retried for ever, and Ray has no newer name for saying so yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    # A block, which is what is repeated when a worker dies, is one page.
    rows = [{"first": first, "last": last} for first, last in pages]
    dataset = ray.data.from_items(rows, override_num_blocks=len(pages))
    # Opaque: Ray Data's own actors look at arguments, and would import torch to understand it.
    packed = pickle.dumps(job)
    dataset = dataset.map_batches(
        _FrontActor, fn_constructor_args=(packed, share.apart), batch_size=1, **share.options(FRONT, alone)
    )
    for name in share.apart:
        dataset = dataset.map_batches(
            _StageActor,
            fn_constructor_args=(name, packed),
            batch_size=1 if alone else APART,
            **share.options(name, alone),
        )
    batches = iter(dataset.iter_batches(batch_size=GROUP, batch_format="numpy", prefetch_batches=1))
    for batch in watched(batches, partial(check_room, share.wanted)):
        for error in filter(None, batch["error"]):
            raise pickle.loads(error)
        yield [unpack(data) for data in batch["photo"]]


@dataclass(frozen=True)
class _Shares:
    """How many actors each stage has, and which share of a processor and of a GPU each of them reserves."""

    actors: dict[str, int]
    cpus: float
    gpus: float

    @classmethod
    def of(cls, cpus: int, gpus: int, stages: Sequence[str], most: int, nodes: int = 1) -> "_Shares":
        """With GPUs one actor per GPU of the front and of each of the other `stages`, sharing it; else one per processor that
        does them all. `most`: upper bound for the actors of any one stage.

        A process costs 3 s and 500 MB for its libraries, and a photo costs packing on its way to it: that is worth it only
        where stages take turns on a GPU. Each computes with one thread: on a CPU, processes side by side beat threads inside
        one forward. On several nodes they reserve half of all processors, so that all have room on what is left when a node
        dies: else those of some stages could take everything, and wait for ever for another stage's.
        """
        cpus = max(cpus, 1)  # none is there: one is waited for
        actors = {name: min(gpus or cpus, most) for name in (FRONT, *(stages if gpus else ()))}
        reserved = 0.9 * cpus / (2 if nodes > 1 else 1)
        return cls(actors, reserved / sum(actors.values()), 1 / len(actors) if gpus else 0)

    @property
    def apart(self) -> list[str]:
        """The stages that have actors of their own."""
        return [name for name in self.actors if name != FRONT]

    @property
    def wanted(self) -> dict[str, float]:
        """What all actors together reserve, by Ray's names."""
        count = sum(self.actors.values())
        return {"CPU": self.cpus * count, "GPU": self.gpus * count}

    def options(self, stage: str, alone: bool) -> dict[str, Any]:
        from ray.data import ActorPoolStrategy  # noqa: PLC0415

        return {
            "compute": ActorPoolStrategy(size=self.actors[stage], max_tasks_in_flight_per_actor=1 if alone else None),
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "batch_format": "numpy",
            "max_task_retries": 1,  # by default for ever, even for an image that kills whoever touches it
        }


def _here(packed: bytes) -> Job:
    """Prepare this process, on whatever machine, for a stage; returns the packed job as it is to be done here."""
    job: Job = pickle.loads(packed)
    set_threads(1)
    keep_freed_memory()
    set_time_limit(job.settings.item_seconds)
    logs.configure(job.settings)
    bind_contextvars(run=job.run_id)
    return replace(job, device=device())


class _FrontActor:
    """The front of the pipeline, and all stages that aren't `elsewhere`, as Ray Data runs it: pages in, packed photos out."""

    def __init__(self, packed: bytes, elsewhere: Sequence[str]) -> None:
        job = _here(packed)
        self.prepare = Prepare(job)
        self.stages: list[AnyStage] = [
            self.prepare,
            *(build() for name, build in face_stages(job) if name not in elsewhere),
        ]

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        pages = zip(batch["first"].tolist(), batch["last"].tolist(), strict=True)
        groups = (group for page in pages for group in self.prepare.take(page))
        try:  # in one thread, beside which the next group is taken and decoded
            with closing(side_by_side(groups, partial(through, self.stages), 1)) as results:
                yield from map(_packed, results)
        except Exception as error:
            yield _broken(error)


class _StageActor:
    """A stage as Ray Data runs it: packed photos in and out."""

    def __init__(self, name: str, packed: bytes) -> None:
        self.stage = dict(face_stages(_here(packed)))[name]()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for error in filter(None, batch["error"]):
            return _broken(pickle.loads(error))
        try:
            return _packed(self.stage([unpack(data) for data in batch["photo"]]))
        except Exception as error:
            return _broken(error)


def _packed(photos: Sequence[PhotoFaces]) -> dict[str, np.ndarray]:
    column = np.empty(len(photos), dtype=object)
    column[:] = [pack(photo) for photo in photos]
    return {"photo": column, "error": np.full(len(photos), b"", dtype=object)}


def _broken(error: Exception) -> dict[str, np.ndarray]:
    """What ends the run, on its way to the driver: raised in an actor, it would pass for a death of its process."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:
        packed = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return {"photo": np.array([b""], dtype=object), "error": np.array([packed], dtype=object)}
