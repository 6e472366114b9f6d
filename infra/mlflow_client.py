"""Opening MLflow: lazily, quietly, without a server where the URI is a database."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy.engine import make_url

from infra.telemetry import silence


def connect(uri: str) -> Any:
    """Return an MlflowClient for tracking and registry at `uri`. The first one on a new database creates its tables."""
    silence()
    from mlflow.tracking import MlflowClient  # noqa: PLC0415  takes 0.8 s: only those who need it pay

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table migration
    with _alone(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes from creating the same SQLite tables at once: MLflow's migrations cannot bear it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(make_url(uri).database or "")
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield
