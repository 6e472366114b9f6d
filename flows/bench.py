"""How fast this machine goes through some photographs, and how fast it could at best."""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from sqlalchemy import delete, select

from flows import night as steps
from flows.night import Night, night
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Image
from infra.settings import Settings
from infra.storage.base import LITTER
from infra.words import count
from tasks.evaluation.stage_limits import Stages, forwards, loading_seconds
from tasks.evaluation.timing import processor
from tasks.pipeline import thread_count

COLLECTION = "bench"
REST = "record and rest"
SAMPLE = 200  # photographs: what is measured of the stages alone is held in memory, whole pictures too


class NoPhotographs(ValueError):
    """There is nothing to measure on."""


@dataclass(frozen=True)
class Bench:
    """What was measured; seconds leave the start of Python and the loading of models out.

    `photographs`: how many were processed, of `found` that the folder has.
    `stages`: where the pipeline's time went, of threads that work side by side an equal share each; reading and decoding run
    beside the others. `alone`: what each stage takes by itself, in as many threads as the pipeline has. `forwards`: what each
    model's forwards take by themselves, at `batches`, with torch's own threads.
    `cpu_share`: of all processors, how much was used.
    """

    machine: str
    processors: int
    photographs: int
    found: int
    failed: int
    faces: int
    restored: int
    seconds: float
    loading: float
    stages: dict[str, float]
    alone: dict[str, float]
    forwards: dict[str, float]
    batches: dict[str, int]
    cpu_share: float
    peak_bytes: int

    def alone_of(self, stage: str) -> float | None:
        """What one of `stages` takes by itself."""
        return self.alone.get("record" if stage == REST else stage)

    @property
    def limit(self) -> float:
        """The bare sum of the stages, in seconds."""
        return sum(self.alone.values())

    @property
    def ratio(self) -> float:
        """The whole pipeline against the bare sum of its stages."""
        return self.seconds / self.limit

    @property
    def ratio_to_forwards(self) -> float:
        """The whole pipeline against the bare sum of its models' forwards."""
        return self.seconds / sum(self.forwards.values())


def bench(
    settings: Settings, photographs: Path, limit: int = SAMPLE, on_step: Callable[[str], None] = lambda step: None
) -> Bench:
    """Process photographs as a night does, in this process and in a catalog of its own that is removed afterwards.

    Of more than `limit` an even sample, in the order of their keys.

    Raises:
        NoPhotographs: if none of the files holds a face, or there are none.
        NotInstalled: if models are missing.
    """
    with tempfile.TemporaryDirectory(prefix="visage-bench-") as folder:

        def place(name: str) -> Settings:
            own = {"home": Path(folder, name), "database_url": "", "objects_uri": "", "engine": "inline"}
            made = settings.model_copy(update={**own, "tracking_uri": settings.mlflow_uri})
            catalog = Catalog(made.catalog_url)
            with catalog.write() as session:
                collections.add(session, COLLECTION, str(photographs), [], list(LITTER), [])
            catalog.close()
            return made

        on_step("measuring what the stages and the models take alone")
        with night(place("limits"), COLLECTION) as state:
            found = _discover_some(state, limit)
            stages = Stages(state.catalog, state.job)
            photos = stages.through()
            if not any(photo.face_count for photo in photos):
                raise NoPhotographs(
                    f"{photographs}: no face was found in {count(len(photos), 'picture')}; choose others"
                )
            stages.record(photos)
            store = state.job.photographs()
            files = [store.read(p.key, settings.max_bytes).data for p in photos if p.failure is None and not p.shared]
            models = forwards(state.job, files, photos)
            taken = {model.name: model.seconds(model.inputs, model.batch) for model in models}
        on_step("processing")
        started, worked = time.perf_counter(), time.process_time()
        with night(place("night"), COLLECTION) as state:
            _discover_some(state, limit)
            for step in (steps.process_images, steps.group_faces, steps.audit_catalog):
                step(state)
            whole, used = time.perf_counter() - started, time.process_time() - worked
            loading = loading_seconds(state.job)
    return Bench(
        machine=processor(),
        processors=settings.cpu_count,
        photographs=state.tally.images,
        found=found,
        failed=sum(state.tally.failures.values()),
        faces=state.tally.faces,
        restored=state.tally.restored,
        seconds=whole - loading,
        loading=loading,
        stages=_stages(state, whole, loading),
        alone=stages.seconds,
        forwards=taken,
        batches={model.name: model.batch for model in models},
        cpu_share=used / whole / settings.cpu_count,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )


def _discover_some(state: Night, limit: int) -> int:
    """Discover photographs, and forget all but an even sample; returns how many there are."""
    steps.discover_images(state)
    with state.catalog.write() as session:
        ids = list(session.scalars(select(Image.id).order_by(Image.id)))
        if len(ids) > limit:
            sample = [ids[n * len(ids) // limit] for n in range(limit)]
            session.execute(delete(Image).where(Image.id.not_in(sample)))
    return len(ids)


def _stages(state: Night, whole: float, loading: float) -> dict[str, float]:
    """Seconds by stage. What the stages in turn do not account for is recording, grouping, and waiting."""
    inside = {name: seconds / thread_count(state.settings) for name, seconds in state.tally.seconds.items()}
    beside = sum(inside.get(name, 0.0) for name in ("read", "decode"))
    return {**inside, REST: max(0.0, whole - loading - (sum(inside.values()) - beside))}


def plot(result: Bench) -> Figure:
    """Draw each stage beside its limit."""
    figure = Figure(figsize=(7.2, 0.4 * len(result.stages) + 1.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = sorted(result.stages, key=result.stages.__getitem__)
    axes.barh(names, [result.stages[name] for name in names], color="#b9c7d8", label="in the pipeline")
    axes.barh(
        names, [result.alone_of(name) or 0.0 for name in names], height=0.35, color="#2f4f7f", label="alone, at best"
    )
    axes.set(
        xlabel="seconds",
        title=f"{result.photographs:,} photographs, {result.faces:,} faces: {result.ratio:.2f} x limit",
    )
    axes.legend(loc="lower right")
    return figure


def environment_note() -> str:
    """What else was at work, which any figure suffers from."""
    load = os.getloadavg()[0]
    return f"load of the machine when this ended: {load:.1f}"
