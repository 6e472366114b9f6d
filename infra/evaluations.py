"""Evaluations that MLflow keeps: what was measured of models, and its plots."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.mlflow_client import connect

EXPERIMENTS = ("verification", "comparison", "restoration", "attributes", "fairness", "grouping")
PICTURES = (".png", ".svg")
MOST_BYTES = 20 * 2**20


class UnknownEvaluation(LookupError):
    """MLflow keeps no such evaluation, or no such plot of it."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. `kind` is its experiment; `files` are the names of what it keeps."""

    run_id: str
    kind: str
    name: str
    when: datetime
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    files: tuple[str, ...] = ()

    @property
    def plots(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if name.endswith(PICTURES))


class Evaluations:
    """The evaluations of one tracking store. Opening takes 0.4 s."""

    def __init__(self, uri: str) -> None:
        self._client = connect(uri)

    def latest(self, limit: int, before: int | None = None) -> list[Evaluation]:
        """The finished ones of every kind, the latest first, without their files; `before`: begun earlier (`milliseconds`)."""
        experiments = {e.experiment_id: e.name for e in self._client.search_experiments() if e.name in EXPERIMENTS}
        if not experiments:
            return []
        wanted = ["attributes.status = 'FINISHED'"]
        if before is not None:
            wanted.append(f"attributes.start_time < {before}")
        runs = self._client.search_runs(
            list(experiments),
            " AND ".join(wanted),
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
        return [_evaluation(run, experiments[run.info.experiment_id], ()) for run in runs]

    def find(self, kind: str, params: Mapping[str, str], limit: int = 100) -> list[Evaluation]:
        """The finished ones of a kind that have these parameters, the latest first, without their files."""
        experiment = self._client.get_experiment_by_name(kind)
        if experiment is None:
            return []
        wanted = ["attributes.status = 'FINISHED'", *(f"params.`{name}` = '{value}'" for name, value in params.items())]
        runs = self._client.search_runs(
            [experiment.experiment_id],
            " AND ".join(wanted),
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
        return [_evaluation(run, kind, ()) for run in runs]

    def show(self, run_id: str) -> Evaluation:
        """One evaluation with the names of its files.

        Raises:
            UnknownEvaluation: if there is none of that id.
        """
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            run = self._client.get_run(run_id)
            kind = self._client.get_experiment(run.info.experiment_id).name
        except MlflowException as error:
            raise UnknownEvaluation(f"no evaluation {run_id!r} is kept") from error
        if kind not in EXPERIMENTS:
            raise UnknownEvaluation(f"{run_id!r} is a run of {kind!r}, no evaluation")
        files = tuple(f.path for f in self._client.list_artifacts(run_id) if not f.is_dir)
        return _evaluation(run, kind, files)

    def read(self, run_id: str, name: str) -> bytes:
        """A file that an evaluation keeps; only names that `show` lists are looked for.

        Raises:
            UnknownEvaluation: if there is none of that name.
        """
        if name not in self.show(run_id).files:
            raise UnknownEvaluation(f"evaluation {run_id!r} keeps no file {name!r}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(self._client.download_artifacts(run_id, name, folder))
            if path.stat().st_size > MOST_BYTES:
                raise UnknownEvaluation(f"{name!r} is larger than {MOST_BYTES:,} bytes: look at it in MLflow")
            return path.read_bytes()


def milliseconds(when: datetime) -> int:
    """A time as MLflow stores it."""
    return round(when.timestamp() * 1000)


def _evaluation(run: object, kind: str, files: tuple[str, ...]) -> Evaluation:
    info, data = run.info, run.data  # type: ignore[attr-defined]
    when = datetime.fromtimestamp(info.start_time / 1000, UTC)
    tags = {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")}
    return Evaluation(
        info.run_id, kind, info.run_name or kind, when, dict(data.metrics), dict(data.params), tags, files
    )
