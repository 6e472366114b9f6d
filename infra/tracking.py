"""Run tracking with MLflow: parameters, metrics and artifacts of one run, in a database and a folder, without a server."""

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from infra.mlflow_client import connect

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """An open run. Names of artifacts are paths inside it, with their folders."""

    run_id: str
    _client: Any

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters, by their text. MLflow refuses another value for one that is logged already. Names become `plain`."""
        from mlflow.entities import Param  # noqa: PLC0415

        self._client.log_batch(self.run_id, params=[Param(plain(name), str(value)) for name, value in values.items()])

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags, by their text: facts that may change as long as the run goes on."""
        from mlflow.entities import RunTag  # noqa: PLC0415

        self._client.log_batch(self.run_id, tags=[RunTag(plain(name), str(value)) for name, value in values.items()])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step. Names become `plain`."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = time.time_ns() // 1_000_000
        batch = [Metric(plain(name), float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=batch)

    def text(self, content: str, name: str) -> None:
        """Keep a text as a file."""
        self.bytes(content.encode(), name)

    def bytes(self, content: bytes, name: str) -> None:
        """Keep bytes as a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, PurePosixPath(name).name)
            path.write_bytes(content)
            self.artifact(path, str(PurePosixPath(name).parent))

    def artifact(self, path: Path, folder: str = ".") -> None:
        """Keep a copy of a file in a folder of the run."""
        self._client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

    def figure(self, figure: "Figure", name: str) -> None:
        """Keep a matplotlib figure; the ending of its name tells the format."""
        self._client.log_figure(self.run_id, figure, name)

    def table(self, columns: Mapping[str, Sequence[object]], name: str) -> None:
        """Keep a table, by column, that MLflow's page shows as one. The name ends in .json."""
        self._client.log_table(self.run_id, dict(columns), name)


def plain(name: str) -> str:
    """A name in characters that MLflow takes: models are called restoreformer++ or NAME@VERSION, columns of tables anything."""
    return re.sub(r"[^\w\-. :/]", "", name.replace("@", " ").replace("+", "p"))


def remove_artifact(uri: str, run_id: str, name: str) -> None:
    """Delete a file of a run. One that is gone already, or whose run is, is no error."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

    try:
        run = connect(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return
        raise
    repository = get_artifact_repository(run.info.artifact_uri)
    folder = str(PurePosixPath(name).parent)
    if any(file.path == name for file in repository.list_artifacts(None if folder == "." else folder)):
        repository.delete_artifacts(name)


def remove_own_artifact(artifacts: Path, run_id: str, name: str) -> None:
    """Delete a file of a run out of the folder that `track` was given, wherever that was when MLflow was told of it."""
    for path in artifacts.glob(f"*/{run_id}/artifacts/{name}"):
        path.unlink(missing_ok=True)


def reopen(uri: str, run_id: str) -> Run:
    """Return a run that some process has opened, to log to it from another one."""
    return Run(run_id, connect(uri))


@contextmanager
def track(
    uri: str, artifacts: Path, experiment: str, name: str, tags: Mapping[str, str], run_id: str | None = None
) -> Iterator[Run]:
    """Open a run called `name` in an experiment, which is created if needed, and close it with its true status.

    FINISHED; FAILED after an exception; KILLED after an interrupt or exit. Its files lie under `artifacts`, unless `uri`
    names a server, which has a place of its own for them. `run_id` goes on with a run that was interrupted.
    """
    client = connect(uri)
    if run_id is None:
        run_id = client.create_run(
            _experiment(client, uri, artifacts, experiment), run_name=name, tags=dict(tags)
        ).info.run_id
    else:
        client.update_run(run_id, "RUNNING")
    try:
        yield Run(run_id, client)
    except Exception:
        client.set_terminated(run_id, "FAILED")
        raise
    except BaseException:
        client.set_terminated(run_id, "KILLED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _experiment(client: Any, uri: str, artifacts: Path, name: str) -> str:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    if known := client.get_experiment_by_name(name):
        return str(known.experiment_id)
    location = None if uri.startswith(("http://", "https://")) else (artifacts.absolute() / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        if made_meanwhile := client.get_experiment_by_name(name):
            return str(made_meanwhile.experiment_id)
        raise
