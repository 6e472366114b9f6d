import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest

from infra import prefect_server
from infra.prefect_server import ServerUnavailable

FLOW = """
from prefect import flow, get_client, task

@task
def add(x: int) -> int:
    return x + 1

@task
def double(x: int) -> int:
    return 2 * x

@flow
def tiny() -> int:
    return double(add(1))

assert tiny() == 4
"""

CRON = """
import sys
from prefect import flow

@flow
def ticking() -> None:
    open(sys.argv[1], "w").close()

if __name__ == "__main__":
    ticking.serve(name="every-minute", cron="* * * * *")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, with_prefect_database: Callable[[Path], None]) -> Iterator[Path]:
    """A home whose Prefect database exists already, so that servers start in it quickly."""
    home = tmp_path_factory.mktemp("home")
    with_prefect_database(home)
    yield home
    prefect_server.stop(home)


@pytest.fixture(autouse=True)
def no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def run_python(code: str, home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def servers_of(home: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(home / "prefect") and prefect_server.__file__ in process.info["cmdline"]
    ]


def pid_of(home: Path) -> int:
    server = prefect_server.status(home)
    assert server is not None
    return server.pid


def test_no_database_is_made_for_a_server_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    with prefect_server.database_made(tmp_path):
        pass
    assert not (tmp_path / "prefect").exists()


def test_a_killed_maker_leaves_no_half_made_database_and_the_server_takes_the_next_one_s(tmp_path: Path) -> None:
    folder = tmp_path / "prefect"
    with prefect_server.database_made(tmp_path):
        [maker] = servers_of(tmp_path)
        while not [*folder.glob("making-*/*.db")]:
            time.sleep(0.02)
        os.kill(maker, signal.SIGKILL)
    assert not (folder / prefect_server.DATABASE).exists()
    with prefect_server.database_made(tmp_path):
        pass
    assert [path.name for path in folder.iterdir()] == [prefect_server.DATABASE]
    made = revision(folder)
    assert made is not None
    file = (folder / prefect_server.DATABASE).stat().st_ino
    with prefect_server.database_made(tmp_path):  # nothing is left to do
        pass
    try:
        prefect_server.begin(tmp_path).url()
        assert (folder / prefect_server.DATABASE).stat().st_ino == file
        assert revision(folder) == made  # the server had nothing to migrate
    finally:
        prefect_server.stop(tmp_path)


def revision(folder: Path) -> str | None:
    with closing(sqlite3.connect(folder / prefect_server.DATABASE)) as connection:
        [(found,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(found)


def test_many_callers_at_once_share_one_server_that_survives_them(home: Path) -> None:
    prefect_server.stop(home)
    code = "import sys, pathlib, infra.prefect_server as s; print(s.begin(pathlib.Path(sys.argv[1])).url())"
    callers = [run_python(code, home, str(home)) for _ in range(4)]
    urls = {caller.communicate()[0].strip() for caller in callers}
    assert urls == {prefect_server.begin(home).url()}
    assert servers_of(home) == [pid_of(home)]


def test_the_address_is_known_before_the_server_answers_there(home: Path) -> None:
    prefect_server.stop(home)
    server = prefect_server.begin(home)
    address, started = server.address(), prefect_server.status(home)
    assert started is not None
    assert not started.healthy(timeout=0.05)
    assert address == server.url()


def test_a_flow_and_its_tasks_are_kept_as_completed(home: Path) -> None:
    url = prefect_server.begin(home).url()
    environment = prefect_server.environment(url, home)
    proxied = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    run = run_python(FLOW, home, **environment, **proxied)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert said == ""
    code = """
import threading
import time
from prefect.client.orchestration import get_client
client = get_client(sync_client=True)
deadline = time.monotonic() + 20
while True:  # the server records task runs a moment later than the flow run
    tasks = [(r.name[:3], r.state_name) for r in client.read_task_runs()]
    if all(state == "Completed" for _, state in tasks) and len(tasks) == 2 or time.monotonic() > deadline:
        break
    time.sleep(0.1)
print([r.state_name for r in client.read_flow_runs()], sorted(tasks))
"""
    seen, _ = run_python(code, home, **environment).communicate()
    assert seen.strip() == "['Completed'] [('add', 'Completed'), ('dou', 'Completed')]"


def test_it_refuses_who_does_not_know_its_password(home: Path) -> None:
    url = prefect_server.begin(home).url()
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{url}/admin/settings")
    assert (home / "prefect" / "password").stat().st_mode & 0o077 == 0


def test_it_listens_on_this_machine_only(home: Path) -> None:
    prefect_server.begin(home).url()
    listening = [c.laddr.ip for c in psutil.Process(pid_of(home)).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_after_a_kill_the_next_run_starts_another(home: Path) -> None:
    prefect_server.begin(home).url()
    killed = pid_of(home)
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while prefect_server.status(home) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert prefect_server.status(home) is None
    prefect_server.begin(home).url()
    assert pid_of(home) != killed


def test_a_server_of_another_version_is_replaced(home: Path) -> None:
    prefect_server.begin(home).url()
    old = pid_of(home)
    state = home / "prefect" / "server.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"version": "3.0.0"}))
    prefect_server.begin(home).url()
    assert servers_of(home) == [pid_of(home)] != [old]


def test_a_server_ends_when_its_folder_is_deleted(home: Path) -> None:
    prefect_server.begin(home).url()
    server = psutil.Process(pid_of(home))
    (home / "prefect" / "server.json").unlink()
    psutil.wait_procs([server], timeout=20)
    assert servers_of(home) == []


def test_stop_ends_a_server_that_hangs(home: Path) -> None:
    prefect_server.begin(home).url()
    os.kill(pid_of(home), signal.SIGSTOP)
    with pytest.raises(ServerUnavailable, match="does not answer after 0 s"):
        prefect_server.begin(home).url(timeout=0.3)
    assert prefect_server.stop(home, patience=0.3)
    assert prefect_server.status(home) is None
    assert not prefect_server.stop(home)


def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_text("not a database" * 1000)
    with pytest.raises(ServerUnavailable, match="file is not a database"):
        prefect_server.begin(tmp_path).url()


def test_the_users_own_server_is_used_and_none_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer((prefect_server.HOST, 0), BaseHTTPRequestHandler) as theirs:  # asks for a password, say: it answers
        url = f"http://{prefect_server.HOST}:{theirs.server_port}/api"
        threading.Thread(target=theirs.serve_forever).start()
        monkeypatch.setenv("PREFECT_API_URL", url)
        server = prefect_server.begin(tmp_path)
        assert server.url() == server.address() == url
        theirs.shutdown()
    assert not (tmp_path / "prefect").exists()
    environment = prefect_server.environment(url, tmp_path)
    assert environment["PREFECT_API_URL"] == url
    assert "PREFECT_API_AUTH_STRING" not in environment
    with pytest.raises(ServerUnavailable, match=f"No Prefect server answers at PREFECT_API_URL={url}"):
        server.url()


@pytest.mark.long  # up to a minute passes before one can
def test_a_cron_schedule_fires(home: Path, tmp_path: Path) -> None:
    url = prefect_server.begin(home).url()
    script, fired = tmp_path / "ticking.py", tmp_path / "fired"
    script.write_text(CRON)
    serving = subprocess.Popen(
        [sys.executable, str(script), str(fired)],
        env=os.environ | prefect_server.environment(url, home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not fired.exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert fired.exists()
    finally:
        serving.terminate()
        serving.wait()
