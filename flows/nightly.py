"""The nightly flow: discover -> process -> group -> audit -> report, as Prefect sees it.

The flow's truth is the catalog, never Prefect's memory: whenever it starts, it asks the catalog what is missing.
"""

import re
from contextvars import ContextVar
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows import night as steps
from flows.night import Night, Observer, night
from infra.catalog.work.key_range import EVERY_KEY, KeyRange
from infra.catalog.work.runs import Slot
from infra.settings import load_settings
from tasks.nights.parts import keys_of
from tasks.nights.run_report import as_markdown

observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@task(cache_policy=NO_CACHE, persist_result=False)
def discover(state: Night) -> None:
    """Find what is new, changed or missing."""
    steps.discover_images(state)


@task(cache_policy=NO_CACHE, persist_result=False)
def process(state: Night) -> None:
    """Detect, restore, embed and describe the faces of what is pending."""
    steps.process_images(state)


@task(cache_policy=NO_CACHE, persist_result=False)
def group(state: Night) -> None:
    """Assign new faces to people."""
    steps.group_faces(state)


@task(cache_policy=NO_CACHE, persist_result=False)
def audit(state: Night) -> None:
    """Prove that nothing was lost."""
    steps.audit_catalog(state)


@task(cache_policy=NO_CACHE, persist_result=False)
def expire(state: Night) -> None:
    """Delete the embeddings that the collection no longer keeps."""
    steps.expire_embeddings(state)


@task(cache_policy=NO_CACHE, persist_result=False)
def report(state: Night) -> None:
    """Log parameters, counts, speed, the contact sheet and the report to MLflow; a summary to Prefect."""
    summary = as_markdown(steps.report_run(state))
    key = re.sub("[^a-z0-9]+", "-", f"night-{state.collection.name.lower()}").strip("-")  # what Prefect takes as one
    create_markdown_artifact(summary, key=key, description=f"run {state.job.run_id} of {state.collection.name}")


@flow(name="nightly", flow_run_name="nightly {collection}", persist_result=False)
def nightly(
    collection: str, part: str | None = None, after_key: str | None = None, through_key: str | None = None
) -> dict[str, Any]:
    """Process what is new or changed in a collection. Returns the run's counts, with its id and status.

    `part` ("2/4") or the two keys name a stretch of the collection's keys, so that several flow runs can share it.
    """
    settings = load_settings()
    keys = keys_of(settings, collection, part) if part else KeyRange(after_key, through_key)
    return work(collection, keys)


def work(collection: str, keys: KeyRange = EVERY_KEY, slot: Slot | None = None) -> dict[str, Any]:
    """All tasks of a night, in order, inside some flow."""
    with night(load_settings(), collection, observer.get(), keys, slot) as state:
        for step in (discover, process, group, audit, expire, report):
            step(state)
    return {"run": state.job.run_id, "failed_images": state.failed_images, **state.counts()}
