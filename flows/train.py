"""The flows that train models: find faces -> train -> publish, as Prefect sees it."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.measure_attributes import log_evaluation
from flows.night import Observer, Silent
from infra.settings import load_settings
from infra.tracking import Run
from tasks.evaluation.attributes import AttributeEvaluation
from tasks.training import train as recognition
from tasks.training.attributes import train as attributes
from tasks.training.attributes.options import AttributeOptions
from tasks.training.attributes.worker import Job as AttributeJob
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


@task(cache_policy=NO_CACHE, persist_result=False)
def compare(
    planned: attributes.Plan, job: AttributeJob, trained: attributes.Trained, watching: Observer
) -> list[AttributeEvaluation]:
    """Judge a head, and the model that it is to beat, on the people kept for the judgement."""
    watching.step("compare", len(job.held))
    return attributes.compare(planned, job, trained, lambda done, total: watching.advance(done))


@flow(
    name="train-attributes",
    flow_run_name="train {options.backbone}-{options.attribute}",
    persist_result=False,
    validate_parameters=False,
)
def train_attributes(
    images: Path, labels: Path, options: AttributeOptions
) -> tuple[attributes.Trained, list[AttributeEvaluation]]:
    """Train a head that tells an attribute, and compare it. Started again after a crash, it goes on where it was."""
    watching = observer.get() or Silent()
    planned = attributes.plan(load_settings(), images, labels, options)
    with attributes.tracked(planned) as run:
        job = cast("AttributeJob", find_faces(attributes, planned, run.run_id, watching))
        counts = {"faces_trained_on": len(job.trained), "faces_kept_for_judging": len(job.held)}
        run.metrics({"pictures_without_face": len(job.faces.without_face), **counts})
        run.text(attributes.as_csv(attributes.held_back(planned, job)), "held_back.csv")
        state = train(attributes, planned, job, watching)
        trained = cast("attributes.Trained", publish(attributes, planned, state, run.run_id))
        comparison = compare(planned, job, trained, watching)
        for evaluation in comparison:
            log_evaluation(run, evaluation)
        if (difference := attributes.advantage(comparison)) is not None:
            run.text(difference.model_dump_json(indent=2), "advantage.json")
        return trained, comparison
