"""The nightly flow as Prefect and MLflow see it, on a local server of ours."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image as PillowImage
from sqlalchemy import select

from flows import night as steps
from flows.night import AuditFailed, Night
from infra import prefect_server
from infra.catalog import collections
from infra.catalog.collections import UnknownCollection
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Embedding, Run
from infra.mlflow_client import connect
from infra.settings import PREFIX, Settings, load_settings
from infra.storage.base import LITTER
from tests.portraits import jpeg, mirrored, small_collection

pytestmark = pytest.mark.slow

STEPS = ["discover", "process", "group", "audit", "expire", "report"]
Nightly = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, with_prefect_database: Callable[[Path], None]) -> Iterator[Nightly]:
    """The flow, in a process whose Prefect talks to a server of its own."""
    home = tmp_path_factory.mktemp("prefect")
    with_prefect_database(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        for name, value in prefect_server.environment(prefect_server.begin(home).url(), home).items():
            patch.setenv(name, value)
        from flows.nightly import nightly  # noqa: PLC0415 - Prefect reads its settings when imported

        yield nightly

        from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

        APILogWorker.drain_all(timeout=10)
    prefect_server.stop(home)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, weights_dir: Path, tracking_uri: str) -> Iterator[Settings]:
    """A home with models and the unprocessed collection `archive`, of which one file is broken."""
    folder = tmp_path_factory.mktemp("night")
    photos = small_collection(folder / "photos")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "home").mkdir()
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), folder / "home" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            patch.delenv(name)
        for name, value in {"HOME": folder / "home", "WEIGHTS": weights_dir, "ENGINE": "inline"}.items():
            patch.setenv(PREFIX + name, str(value))
        settings = load_settings()
        catalog = Catalog(settings.catalog_url)
        with catalog.write() as session:
            collections.add(session, "archive", str(photos), [], list(LITTER), ["age"])
        catalog.close()
        yield settings


class First(NamedTuple):
    """The first night: what the flow returned, its flow run and task runs, and its row in the catalog."""

    counts: dict[str, Any]
    flow_run: Any
    task_runs: list[Any]
    row: Run


@pytest.fixture(scope="module")
def first(flow: Nightly, machine: Settings) -> First:
    return First(flow("archive"), *latest_flow_run(len(STEPS)), latest_run(machine))


def photographs(settings: Settings) -> Path:
    return settings.home.parent / "photos"


def latest_run(settings: Settings) -> Run:
    with Catalog(settings.catalog_url).read() as session:
        return session.scalars(select(Run).order_by(Run.id.desc()).limit(1)).one()


def latest_flow_run(tasks: int) -> tuple[Any, list[Any]]:
    """The latest flow run and its task runs in order, once the server has recorded `tasks` of them as ended."""
    from prefect import get_client  # noqa: PLC0415
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId  # noqa: PLC0415
    from prefect.client.schemas.sorting import FlowRunSort  # noqa: PLC0415

    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            (run,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            if len([t for t in found if t.state and t.state.is_final()]) >= tasks or time.monotonic() > deadline:
                return run, sorted(found, key=lambda task: task.start_time or task.expected_start_time)
            time.sleep(0.2)


def tracked(settings: Settings, run: Run) -> tuple[Any, dict[str, Path]]:
    """The MLflow run of a night, and its files by name."""
    assert run.tracking_run_id is not None
    found = connect(settings.mlflow_uri).get_run(run.tracking_run_id)
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    return found, {path.name: path for path in folder.rglob("*") if path.is_file()}


def test_flow_returns_what_happened(first: First) -> None:
    counts, row = first.counts, first.row
    assert (counts["run"], row.status) == (row.id, "done_with_failures")
    assert (counts["new"], counts["processed"], counts["faces"], counts["duplicates"]) == (6, 6, 4, 1)
    assert (counts["failed"], counts["failed_images"]) == ({"decode: truncated": 1}, 1)
    assert {name: counts[name] for name in row.counts} == row.counts | {"seconds": counts["seconds"]}


def test_prefect_shows_the_flow_and_its_tasks_completed(first: First) -> None:
    run = first.flow_run
    assert (run.name, run.parameters["collection"], run.state.name) == ("nightly archive", "archive", "Completed")
    assert [task.name.rpartition("-")[0] for task in first.task_runs] == STEPS
    assert {task.state.name for task in first.task_runs} == {"Completed"}


def test_mlflow_has_parameters_counts_speed_and_seconds_per_stage(first: First, machine: Settings) -> None:
    run, _ = tracked(machine, first.row)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["collection"], run.data.tags["run"]) == ("archive", str(first.counts["run"]))
    params = run.data.params
    assert (params["engine"], params["device"]) == ("inline", "cpu")
    assert params["attributes"] == "age, expression"
    assert params["embed/dlib-resnet"].startswith("1 ")
    assert {name for name in params if "/" in name} == {
        "detect/mtcnn", "embed/dlib-resnet", "restore/real-esrgan-x4plus", "describe/mini-xception", "describe/dlib-age",
        "describe/measured",
    }  # fmt: skip
    metrics = run.data.metrics
    expected = {"images": 6, "faces": 4, "restored": first.counts["restored"], "failures": 1, "discovery/new": 6}
    assert {name: metrics[name] for name in expected} == expected
    seconds = metrics["seconds/process"]
    assert metrics["images_per_second"] == pytest.approx(6 / seconds)
    assert metrics["faces_per_second"] == pytest.approx(4 / seconds)
    for stage in ("read", "decode", "detect", "align", "assess", "restore", "embed", "describe"):
        assert metrics[f"stage_seconds/{stage}"] > 0
    for step in STEPS[:-1]:
        assert f"seconds/{step}" in metrics


def test_contact_sheet_is_a_picture_of_the_faces(first: First, machine: Settings) -> None:
    _, files = tracked(machine, first.row)
    sheet = PillowImage.open(io.BytesIO(files["contact_sheet.png"].read_bytes()))
    assert (sheet.format, sheet.size, sheet.mode) == ("PNG", (4 * 96, 96), "RGB")
    tiles = [sheet.crop((x * 96, 0, x * 96 + 96, 96)).getextrema() for x in range(4)]
    assert all(high - low > 100 for tile in tiles for low, high in tile)  # each shows something
    assert json.loads(files["counts.json"].read_text())["faces"] == 4


def test_the_report_says_what_happened_to_people_and_programs(first: First, machine: Settings) -> None:
    _, files = tracked(machine, first.row)
    html = files["report.html"].read_text()
    assert "6 images done, 4 faces found, 1 could not be processed" in html
    assert "broken.jpg" in html
    assert "data:image/png;base64," in html
    assert "<script" not in html
    report = json.loads(files["report.json"].read_text())
    assert (report["collection"], report["run"], report["counts"]["faces"]) == ("archive", first.counts["run"], 4)
    assert [(f["key"], f["reason"]) for f in report["failures"]] == [("broken.jpg", "truncated")]
    assert report["counts"]["audited"]["images"] == {"done": 5, "failed": 1}


def test_prefect_shows_a_summary_without_pictures_or_keys(first: First) -> None:
    from prefect import get_client  # noqa: PLC0415
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["night-archive"])),
        )[:1]
    assert "6 images done, 4 faces found, 1 could not be processed" in artifact.data
    assert "| failed, decode: truncated | 1 |" in artifact.data
    assert "broken.jpg" not in artifact.data


def test_the_log_tells_run_stage_and_key_in_lines_of_json(first: First, machine: Settings) -> None:
    lines = [json.loads(line) for line in (machine.home_folder / "logs" / "visage.jsonl").read_text().splitlines()]
    own = [line for line in lines if line.get("run") == first.counts["run"]]
    assert [line["event"] for line in own if line["event"].startswith("run ")] == ["run opened", "run closed"]
    [failed] = [line for line in own if line["event"] == "image failed"]
    assert (failed["collection"], failed["stage"], failed["reason"]) == ("archive", "decode", "truncated")
    assert failed["key"] == "broken.jpg"
    assert {line["step"] for line in own if line["event"] == "step ended"} == set(STEPS)
    assert all(line["at"].endswith("Z") for line in own)


def test_whoever_watches_sees_every_step_and_its_progress(flow: Nightly, first: First, machine: Settings) -> None:
    from flows.nightly import observer  # noqa: PLC0415

    class Watching:
        def __init__(self) -> None:
            self.steps: list[tuple[str, int | None]] = []
            self.done: list[int] = []

        def step(self, name: str, total: int | None) -> None:
            self.steps.append((name, total))

        def advance(self, done: int) -> None:
            self.done.append(done)

    for i in range(3):
        (photographs(machine) / f"more_{i}.jpg").write_bytes(jpeg(mirrored(400 + i)))
    watching = Watching()
    token = observer.set(watching)
    flow("archive")
    observer.reset(token)
    assert watching.steps == [
        ("discover", None),
        ("process", 3),
        ("group", None),
        ("audit", None),
        ("expire", None),
        ("report", None),
    ]
    assert watching.done[-1] == 3


def test_a_night_without_news_is_reported_without_a_contact_sheet(
    flow: Nightly, first: First, machine: Settings
) -> None:
    again = flow("archive")
    assert (again["processed"], again["new"], again["failed_images"]) == (0, 0, 1)
    run, files = tracked(machine, latest_run(machine))
    assert run.data.metrics["images"] == 0
    assert run.data.metrics["images_per_second"] == 0
    assert run.data.params["engine"] == "none"
    assert files.keys() == {"counts.json", "report.html", "report.json"}
    assert "Nothing was new" in files["report.html"].read_text()


def test_a_failing_audit_makes_the_flow_fail_loudly(
    flow: Nightly, first: First, machine: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_one_embedding(state: Night) -> None:
        with state.catalog.write() as session:
            lost = session.scalars(select(Embedding).order_by(Embedding.face_id).limit(1)).one()
            kept.update({"face_id": lost.face_id, "model_version_id": lost.model_version_id, "vector": lost.vector})
            session.delete(lost)

    kept: dict[str, Any] = {}
    monkeypatch.setattr(steps, "group_faces", lose_one_embedding)
    with pytest.raises(AuditFailed, match="1 faces without an embedding"):
        flow("archive")
    catalog = Catalog(machine.catalog_url)
    with catalog.write() as session:
        session.add(Embedding(**kept))
    catalog.close()
    run, tasks = latest_flow_run(4)
    assert run.state.name == "Failed"
    assert "1 faces without an embedding" in run.state.message
    assert {task.name.rpartition("-")[0]: task.state.name for task in tasks} == {
        "discover": "Completed", "process": "Completed", "group": "Completed", "audit": "Failed",
    }  # fmt: skip
    closed = latest_run(machine)
    assert (closed.status, closed.tracking_run_id) == ("failed", None)
    assert "1 faces without an embedding" in (closed.error or "")


def test_an_interrupted_night_is_closed_and_shown_as_crashed(
    flow: Nightly, first: First, machine: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(state: Night) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "process_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            flow("archive")
    closed = latest_run(machine)
    assert (closed.status, closed.error) == ("failed", "interrupted")
    assert latest_flow_run(2)[0].state.name == "Crashed"
    assert flow("archive")["processed"] == 0  # and the next night is not held up


def test_an_unknown_collection_fails_the_flow_and_opens_no_run(flow: Nightly, first: First, machine: Settings) -> None:
    before = latest_run(machine).id
    with pytest.raises(UnknownCollection, match="'albums'"):
        flow("albums")
    run, tasks = latest_flow_run(0)
    assert (run.name, run.state.name, tasks) == ("nightly albums", "Failed", [])
    assert latest_run(machine).id == before
