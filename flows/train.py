"""The flow that trains a recognition model: find faces -> train -> publish, as Prefect sees it."""

from contextvars import ContextVar
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.night import Observer, Silent
from infra.settings import load_settings
from tasks.training import train as steps
from tasks.training.options import TrainingOptions
from tasks.training.train import Plan, Trained
from tasks.training.worker import Job

observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@task(cache_policy=NO_CACHE, persist_result=False)
def find_faces(planned: Plan, tracking_run: str, watching: Observer) -> Job:
    """Find the face on every labelled picture, and keep some people for verification."""
    watching.step("find faces", len(planned.labelled.names))
    return steps.prepare(planned, tracking_run, lambda done, total: watching.advance(done))


@task(cache_policy=NO_CACHE, persist_result=False)
def train(planned: Plan, job: Job, watching: Observer) -> Path:
    """Train with Ray, from the last checkpoint if there is one."""
    watching.step("train", job.steps)
    return steps.fit(planned, job, lambda done, total: watching.advance(done))


@task(cache_policy=NO_CACHE, persist_result=False)
def publish(planned: Plan, state: Path, tracking_run: str) -> Trained:
    """Make the result a version of its model, and the challenger."""
    return steps.publish(planned, state, tracking_run)


@flow(
    name="train-recognition", flow_run_name="train {options.backbone}", persist_result=False, validate_parameters=False
)
def train_recognition(images: Path, labels: Path | None, options: TrainingOptions) -> Trained:
    """Train a recognition model on labelled pictures. Started again after a crash, it goes on where it was."""
    watching = observer.get() or Silent()
    planned = steps.plan(load_settings(), images, labels, options)
    with steps.tracked(planned) as run:
        job = find_faces(planned, run.run_id, watching)
        run.metrics({"pictures_without_face": len(job.faces.without_face), "people": job.split.classes})
        state = train(planned, job, watching)
        return publish(planned, state, run.run_id)
