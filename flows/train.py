"""The flows that train models: find faces -> train -> publish, as Prefect sees it."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.night import Observer, Silent
from infra.settings import load_settings
from infra.tracking import Run
from tasks.training import train as recognition
from tasks.training.options import TrainingOptions
from tasks.training.restoration import train as restoration
from tasks.training.restoration.options import RestorationOptions
from tasks.training.restoration.worker import Job as RestorationJob
from tasks.training.run import Progress
from tasks.training.worker import Job as RecognitionJob

observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


class Steps(Protocol):
    """What each kind of training is made of: the functions of its module."""

    def tracked(self, planned: Any) -> AbstractContextManager[Run]: ...
    def prepare(self, planned: Any, tracking_run: str, on_progress: Progress) -> Any: ...
    def fit(self, planned: Any, job: Any, on_progress: Progress) -> Path: ...
    def publish(self, planned: Any, state_file: Path, tracking_run: str) -> Any: ...


@task(cache_policy=NO_CACHE, persist_result=False)
def find_faces(steps: Steps, planned: Any, tracking_run: str, watching: Observer) -> object:
    """Find the face on every labelled picture, and keep some people for the judgement."""
    watching.step("find faces", len(planned.labelled.names))
    return steps.prepare(planned, tracking_run, lambda done, total: watching.advance(done))


@task(cache_policy=NO_CACHE, persist_result=False)
def train(steps: Steps, planned: Any, job: Any, watching: Observer) -> Path:
    """Train with Ray, from the last checkpoint if there is one."""
    watching.step("train", job.steps)
    return steps.fit(planned, job, lambda done, total: watching.advance(done))


@task(cache_policy=NO_CACHE, persist_result=False)
def publish(steps: Steps, planned: Any, state: Path, tracking_run: str) -> object:
    """Make the result a version of its model, and the challenger."""
    return steps.publish(planned, state, tracking_run)


@flow(
    name="train-recognition", flow_run_name="train {options.backbone}", persist_result=False, validate_parameters=False
)
def train_recognition(images: Path, labels: Path | None, options: TrainingOptions) -> recognition.Trained:
    """Train a recognition model on labelled pictures. Started again after a crash, it goes on where it was."""
    watching = observer.get() or Silent()
    planned = recognition.plan(load_settings(), images, labels, options)
    with recognition.tracked(planned) as run:
        job = cast("RecognitionJob", find_faces(recognition, planned, run.run_id, watching))
        run.metrics({"pictures_without_face": len(job.faces.without_face), "people": job.split.classes})
        state = train(recognition, planned, job, watching)
        return cast("recognition.Trained", publish(recognition, planned, state, run.run_id))


@flow(name="train-restoration", flow_run_name="train {options.model}", persist_result=False, validate_parameters=False)
def train_restoration(images: Path, labels: Path | None, options: RestorationOptions) -> restoration.Trained:
    """Train a restorer on pictures of people. Started again after a crash, it goes on where it was."""
    watching = observer.get() or Silent()
    planned = restoration.plan(load_settings(), images, labels, options)
    with restoration.tracked(planned) as run:
        job = cast("RestorationJob", find_faces(restoration, planned, run.run_id, watching))
        run.metrics(
            {"pictures_without_face": len(job.faces.without_face), "faces": len(job.rows), "kept": len(job.held)}
        )
        state = train(restoration, planned, job, watching)
        return cast("restoration.Trained", publish(restoration, planned, state, run.run_id))
