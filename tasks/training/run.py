"""What every training needs, whatever is trained: a run in MLflow that outlives a crash, Ray, and a place for the result.

A training has a folder of its own under the home folder, named by everything that decides its result. Whoever starts the same
training again after a crash goes on with it.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel
from torch import Tensor

from infra import weights
from infra.catalog.custody import places
from infra.catalog.database import Catalog
from infra.catalog.tables.custody import Keeps
from infra.ray_cluster import connected, gpus
from infra.registry import CHALLENGER, Registry
from infra.settings import Settings
from infra.tracking import Run, track
from models.spec import ModelSpec
from tasks.evaluation.central_face import Progress
from tasks.model_version import ModelVersion
from tasks.training import collection
from tasks.training.collection import Faces, Labelled
from tasks.training.loop import PROGRESS, STATE
from tasks.versioning.install import Installed, register

FOLDER, TRACKING_RUN, WATCH_SECONDS = "training", "tracking_run", 1.0
EXPERIMENT = "training"

Options = TypeVar("Options", bound=BaseModel)


class TrainingFailed(RuntimeError):
    """A worker gave up; the message says why, and what to do."""


@dataclass(frozen=True)
class Plan(Generic[Options]):
    """A training that can begin: which model is made, from which pictures, and where it works."""

    settings: Settings
    options: Options
    labelled: Labelled
    detector: ModelVersion
    spec: ModelSpec
    folder: Path


def folder_of(settings: Settings, facts: Sequence[object]) -> Path:
    """The folder of a training, by all that decides its result."""
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return settings.home_folder / FOLDER / name


def find_faces(planned: Plan[Any], on_progress: Progress) -> Faces:
    """Find the faces as the model to be made wants to see them. They lie where an erasure reaches them meanwhile.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
    """
    assert planned.spec.preprocess is not None
    template, folder = planned.spec.preprocess.template, planned.folder / "faces"
    catalog = Catalog(planned.settings.catalog_url)
    try:
        places.enter(catalog, planned.settings, Keeps.CACHE)
    finally:
        catalog.close()
    return collection.find_faces(planned.settings, planned.detector, template, planned.labelled, folder, on_progress)


def fit(planned: Plan[Any], work: Callable[[], None], steps: int, on_progress: Progress) -> Path:
    """Let Ray run `work` in every worker, from the last checkpoint if there is one; returns the file of the last state.

    Raises:
        TrainingFailed: if a worker gives up, or there are not enough processors or GPUs for all workers.
    """
    settings, workers = planned.settings, planned.options.workers
    with connected(settings.ray_address or None, settings.cpu_count):
        import ray.train.torch  # noqa: PLC0415 - takes seconds, and only a training needs it

        devices = gpus() or int(ray.cluster_resources().get("CPU", 0))
        if workers > devices:
            raise TrainingFailed(
                f"{workers} workers, but {devices} {'GPUs' if gpus() else 'processors'}: ask for fewer."
            )
        trainer = ray.train.torch.TorchTrainer(
            work,
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus() > 0),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(planned.folder),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            with _watched(planned.folder / PROGRESS, steps, on_progress):
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingFailed(_why(error)) from error
        return Path(result.checkpoint.path, STATE)


def network_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights out of the state of the objective that it was trained by."""
    prefix = "network."
    return {key.removeprefix(prefix): value for key, value in state["objective"].items() if key.startswith(prefix)}


def enter(planned: Plan[Any], network: Mapping[str, Tensor], origin: Mapping[str, str], tracking_run: str) -> Installed:
    """Make trained weights a version of their model and its challenger; the champion too where there is none yet.

    The training's folder is removed: faces of people stay no longer than they are needed.
    """
    settings, spec = planned.settings, planned.spec
    spec.build(network)
    settings.weights_folder.mkdir(parents=True, exist_ok=True)
    with FileLock(settings.weights_folder / ".lock"):
        source = f"MLflow run {tracking_run}"
        stored = weights.store(
            settings.weights_folder, spec.name, network, licence=spec.licence, source=source, origin=origin
        )
        registry = Registry(settings.mlflow_uri)
        installed = register(registry, spec, source, stored, converted=True)
        registry.point(spec.name, CHALLENGER, installed.model.version)
    shutil.rmtree(planned.folder)
    return installed


@contextmanager
def tracked(planned: Plan[Any], facts: Mapping[str, object]) -> Iterator[Run]:
    """Open the training's run in MLflow, the one of before if it was interrupted, and keep others from training the same.

    The run tells the options and the pictures, and the `facts` besides. Faces that were found stay for a training that can go
    on: one that was interrupted, or whose workers gave up.

    Raises:
        TrainingFailed: if another process is at this very training.
    """
    settings, folder, model, images = planned.settings, planned.folder, planned.spec.name, planned.labelled.images
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / TRACKING_RUN
    try:
        lock = FileLock(settings.home_folder / FOLDER / f"{folder.name}.lock").acquire(timeout=0)
    except Timeout:
        raise TrainingFailed("this very training is at work in another process.") from None
    with (
        lock,
        track(
            settings.mlflow_uri,
            settings.artifacts_folder,
            EXPERIMENT,
            f"{model} on {images.name}",
            {"model": model},
            run_id=known.read_text(encoding="utf-8") if known.exists() else None,
        ) as run,
    ):
        known.write_text(run.run_id, encoding="utf-8")
        chosen = planned.options.model_dump(mode="json")
        # What does not decide the result may be another when the training goes on.
        run.tags({"pictures": images, **{name: chosen.pop(name) for name in ("against",) if name in chosen}})
        run.params({**chosen, **facts})
        try:
            yield run
        except TrainingFailed:
            raise
        except Exception:
            shutil.rmtree(folder / "faces", ignore_errors=True)
            raise


def _why(error: Exception) -> str:
    """The first worker's own words, without Ray's."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    cause = getattr(cause, "cause", None) or cause.__cause__ or cause
    return f"{type(cause).__name__}: {cause} The same command goes on from the last checkpoint."


@contextmanager
def _watched(file: Path, total: int, on_progress: Progress) -> Iterator[None]:
    """Report the steps that the first worker notes in a file, until the context is left."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if file.exists() and (text := file.read_text(encoding="utf-8")):
                on_progress(int(text), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
