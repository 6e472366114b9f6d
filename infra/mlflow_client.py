"""Opening MLflow: lazily, quietly, without a server where the URI is a database."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy.engine import make_url

from infra.telemetry import silence


def load() -> Any:
    """Import MLflow's client, which takes a second or more: only those who need it pay, where they wait anyway if they can."""
    silence()
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    return MlflowClient


def connect(uri: str) -> Any:
    """Return an MlflowClient for tracking and registry at `uri`. The first one on a new database creates its tables."""
    client = load()
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of every table migration
    with _alone(uri) as database:
        if database is not None and not database.exists():
            _create(database)
        return client(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _alone(uri: str) -> Iterator[Path | None]:
    """Keep other processes from creating the same SQLite tables at once: MLflow's migrations cannot bear it.

    Gives the file, if the URI is one.
    """
    if not uri.startswith("sqlite:///"):
        yield None
        return
    database = Path(make_url(uri).database or "")
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        yield database


def _create(database: Path) -> None:
    """Let MLflow make its tables aside: killed in the middle, it could neither use nor mend what it has left."""
    for left in database.parent.glob(f"{database.name}.new-*"):
        left.unlink()
    aside = database.with_name(f"{database.name}.new-{secrets.token_hex(4)}")  # MLflow remembers what it has opened
    uri = f"sqlite:///{aside}"
    client = load()(tracking_uri=uri, registry_uri=uri)
    client._tracking_client.store.engine.dispose()
    aside.rename(database)
