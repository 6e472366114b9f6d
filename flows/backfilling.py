"""The backfill as Prefect sees it. Its truth is the catalog: started again, it goes on with what is missing."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

from prefect import flow

from flows.backfill import run_backfill
from infra.settings import load_settings

on_progress: ContextVar[Callable[[int, int], None]] = ContextVar("on_progress", default=lambda done, total: None)


@flow(name="backfill", persist_result=False)
def backfill(rate: float | None = None) -> dict[str, Any]:
    """Give every face the embedding of the version to come, at `rate` faces per second at most, then switch."""
    return asdict(run_backfill(load_settings(), rate, on_progress.get()))
