"""`visage serve-schedules` for real: a process of its own, a Prefect server, and nights that come round."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select, update

from flows.serve import _Server
from infra import prefect_server
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Run, RunStatus, Schedule
from infra.catalog.work.schedules import by_name
from infra.settings import PREFIX, Settings, load_settings
from infra.storage.base import LITTER
from tasks.nights.schedules import add_schedule, due, pause_schedule
from tests.command import visage
from tests.full_postgresql import full_postgresql
from tests.portraits import jpeg, portrait

SERVE = [sys.executable, "-c", "from flows.cli import main; main()", "serve-schedules"]


@pytest.fixture
def machine(
    tmp_path: Path,
    weights_dir: Path,
    tracking_uri: str,
    with_prefect_database: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Settings]:
    """A home with models and the collection `archive` of one photo; the environment names nothing else."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(portrait()))
    with_prefect_database(tmp_path / "home")
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), tmp_path / "home" / "mlflow.db")
    for name in [name for name in os.environ if name.startswith(PREFIX)] + ["PREFECT_API_URL"]:
        monkeypatch.delenv(name, raising=False)
    settings = {"HOME": tmp_path / "home", "WEIGHTS": weights_dir, "ENGINE": "inline", "RESTORE_MODEL": ""}
    for name, value in settings.items():
        monkeypatch.setenv(PREFIX + name, str(value))
    with Catalog(load_settings().catalog_url).write() as session:
        collections.add(session, "archive", str(tmp_path / "photos"), [], list(LITTER), [])
    yield load_settings()
    prefect_server.stop(tmp_path / "home")


@contextmanager
def serving(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    with (
        (settings.home_folder / "serve.log").open("ab") as log,
        subprocess.Popen(SERVE, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def runs(settings: Settings) -> list[Run]:
    with Catalog(settings.catalog_url).read() as session:
        return list(session.scalars(select(Run).order_by(Run.id)))


def wait(settings: Settings, until: Callable[[], bool], patience: float = 300) -> None:
    deadline = time.monotonic() + patience
    while not until():
        assert time.monotonic() < deadline, (settings.home_folder / "serve.log").read_text()
        time.sleep(0.25)


def nightly(settings: Settings, cron: str, missed_for: timedelta, catch_up: bool) -> None:
    """A schedule that was there for a while without being served."""
    catalog = Catalog(settings.catalog_url)
    add_schedule(catalog, "nightly", "archive", cron, catch_up=catch_up)
    with catalog.write() as session:
        session.execute(update(Schedule).values(active_since=datetime.now(UTC) - missed_for))
    catalog.close()


@pytest.mark.slow
def test_missed_nights_are_made_up_for_once_when_the_machine_is_back(machine: Settings) -> None:
    nightly(machine, f"0 {(datetime.now(UTC) - timedelta(hours=3)).hour} * * *", timedelta(days=5), catch_up=True)
    with serving(machine) as process:
        wait(machine, lambda: bool(runs(machine)) and runs(machine)[-1].status != RunStatus.RUNNING)
        second = visage("serve-schedules")
        assert (second.code, "serves the schedules" in second.err) == (1, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    [run] = runs(machine)
    assert (run.status, run.counts["processed"]) == (RunStatus.DONE, 1)
    assert run.slot is not None
    assert timedelta(hours=2) < datetime.now(UTC) - run.slot < timedelta(hours=4)
    with Catalog(machine.catalog_url).read() as session:
        assert due(session, by_name(session, "nightly"), datetime.now(UTC)) is None


@pytest.mark.long
def test_a_cron_schedule_fires_every_minute_and_survives_being_killed(machine: Settings) -> None:
    nightly(machine, "* * * * *", timedelta(0), catch_up=False)
    with serving(machine) as process:
        wait(machine, lambda: len([r for r in runs(machine) if r.status == RunStatus.DONE]) >= 2)
        process.kill()
    first = runs(machine)
    prefect_server.stop(machine.home_folder)
    time.sleep(130)  # two times pass unserved
    with serving(machine):
        wait(machine, lambda: len([r for r in runs(machine)[len(first) :] if r.status == RunStatus.DONE]) >= 2)
        catalog = Catalog(machine.catalog_url)
        pause_schedule(catalog, "nightly")
        catalog.close()
        time.sleep(15)
        paused = len(runs(machine))
        time.sleep(75)
        assert len(runs(machine)) == paused
    slots = [run.slot for run in runs(machine)]
    assert None not in slots
    assert len(set(slots)) == len(slots)  # never twice
    gap = runs(machine)[len(first)].slot, first[-1].slot
    assert gap[0] - gap[1] >= timedelta(minutes=2)  # type: ignore[operator]  # one run for all that was missed
    spans = [(run.started_at, run.finished_at) for run in runs(machine) if run.status == RunStatus.DONE]
    assert all(end is not None and end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.long
def test_a_night_that_a_restart_ended_goes_on_when_the_machine_is_back(machine: Settings, tmp_path: Path) -> None:
    photo = (tmp_path / "photos" / "a.jpg").read_bytes()
    for i in range(400):
        (tmp_path / "photos" / f"more_{i:03}.jpg").write_bytes(photo + b"%d" % i)
    nightly(machine, f"0 {(datetime.now(UTC) - timedelta(hours=3)).hour} * * *", timedelta(days=1), catch_up=True)
    with serving(machine) as process:
        wait(machine, lambda: bool(runs(machine)))
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0
    with serving(machine):
        wait(machine, lambda: runs(machine)[-1].status == RunStatus.DONE, patience=240)
    assert [run.status for run in runs(machine)] == [RunStatus.CRASHED, RunStatus.DONE]
    assert len({run.slot for run in runs(machine)}) == 1


@contextmanager
def own_prefect_server(database: str, log: Path) -> Iterator[str]:
    """Run a Prefect server as an operator would; gives the URL of its API."""
    with socket.create_server((prefect_server.HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", prefect_server.HOST, "--port", str(port)]
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_HOME": str(log.parent / "prefect home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with (
        log.open("ab") as file,
        subprocess.Popen(command, env=os.environ | settings, stdout=file, stderr=file) as process,
    ):
        try:
            deadline = time.monotonic() + 180
            while not prefect_server.Server(process.pid, port, "").healthy(timeout=1):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield f"http://{prefect_server.HOST}:{port}/api"
        finally:
            process.terminate()


@pytest.mark.long
def test_nights_fire_from_an_own_prefect_server_on_postgresql(
    machine: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_postgresql("prefect") as folder:
        database = f"postgresql+asyncpg://prefect@/prefect?host={folder}"
        with own_prefect_server(database, tmp_path / "prefect.log") as url:
            monkeypatch.setenv("PREFECT_API_URL", url)
            nightly(machine, "* * * * *", timedelta(0), catch_up=False)
            with serving(machine) as process:
                wait(machine, lambda: len([r for r in runs(machine) if r.status == RunStatus.DONE]) >= 2)
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=90) == 0
            assert prefect_server.status(machine.home_folder) is None  # none of our own beside it
        with psycopg.connect(f"host={folder} user=prefect dbname=prefect") as connection:
            rung = connection.execute("SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED' AND auto_scheduled")
            assert rung.fetchone()[0] >= 1  # type: ignore[index]  # by Prefect; the last may have been ended with its process


@pytest.mark.slow
def test_a_catalog_leaves_the_deployments_of_another_on_the_same_prefect_server_alone(tmp_path: Path) -> None:
    from prefect import get_client  # noqa: PLC0415
    from prefect.runner import Runner  # noqa: PLC0415
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415

    def server(name: str) -> _Server:
        settings = Settings(home=tmp_path / name)
        catalog = Catalog(settings.catalog_url)
        with catalog.write() as session:
            collections.add(session, "archive", str(tmp_path), [], list(LITTER), [])
        add_schedule(catalog, "nightly", "archive", "0 2 * * *", catch_up=False)
        return _Server(settings, catalog, "", lambda said: None)

    async def names() -> list[str]:
        async with get_client() as client:
            return sorted(deployment.name for deployment in await client.read_deployments())

    async def both() -> tuple[list[str], list[str]]:
        first, second, runner = server("first"), server("second"), Runner()
        await first._keep_in_step(runner)
        await second._keep_in_step(runner)
        served = await names()
        await second._forget_former()
        return served, await names()

    with prefect_test_harness(server_startup_timeout=120):
        served, left = asyncio.run(both())
    assert len(served) == 2
    assert len(left) == 1
    assert left[0] in served


@pytest.mark.long
def test_prefects_own_worker_runs_the_deployments_of_the_work_pool(machine: Settings) -> None:
    root = Path(__file__).parents[2]
    url = prefect_server.begin(machine.home_folder).url()
    environment = os.environ | prefect_server.environment(url, machine.home_folder)
    environment |= {"CHECKOUT": str(root), "PYTHONPATH": str(root)}
    environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"

    def prefect(*arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    prefect("work-pool", "create", "visage", "--type", "process")
    prefect("deploy", "--prefect-file", "infra/deploy/prefect.yaml", "--all")
    prefect("deployment", "run", "nightly/archive")
    said = prefect("worker", "start", "--pool", "visage", "--run-once")
    assert runs(machine), said
    [run] = runs(machine)
    assert (run.status, run.counts["processed"]) == (RunStatus.DONE, 1)
