"""One local Prefect server of our own: started when needed, reused by later runs, stopped by `visage down`.

A server is alive exactly as long as its process holds the lock on `server.json`, in which it has written how to reach it.
The kernel drops that lock however the process ends, so neither a kill -9 nor a reused process number leaves anything stale.
Only for POSIX systems. With PREFECT_API_URL set by the user, that server is used and none is started.
"""

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path

HOST = "127.0.0.1"

# What a server for one person's runs and schedules does without. The scheduler and the recorder of task runs stay on.
# Fewer writers on one SQLite file also mean fewer requests that Prefect's client repeats two seconds later.
LEAN = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}


DATABASE = "prefect.db"  # as Prefect calls it
DATABASE_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
ELSEWHERE = ("PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL", DATABASE_URL)


class ServerUnavailable(RuntimeError):
    """The Prefect server does not run; the message tells what its log says and what to do."""


@dataclass(frozen=True)
class Server:
    """A living server, as it describes itself."""

    pid: int
    port: int
    version: str

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/api"

    def healthy(self, timeout: float) -> bool:
        """Ask the server whether it is ready. It listens from its first moment on, so this waits while it starts."""
        connection = HTTPConnection(HOST, self.port, timeout=timeout)  # knows of no proxy, unlike urllib
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class PendingServer:
    """A server that runs or is about to."""

    folder: Path
    given: str | None = None

    def address(self) -> str:
        """The URL of its API as soon as it is known, which is before the server answers there.

        Raises:
            ServerUnavailable: as `url`.
        """
        server = None if self.given is not None else _await_state(self.folder)
        return self.url() if server is None else server.url

    def url(self, timeout: float = 60.0) -> str:
        """Wait until the server answers and return the URL of its API.

        Raises:
            ServerUnavailable: it ended before it answered, or does not answer within `timeout` seconds; one that was given
                must answer at once.
        """
        if self.given is not None:
            _check_answers(self.given)
            return self.given
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not _is_alive(self.folder):
                raise ServerUnavailable(f"The local Prefect server ended by itself.{_last_words(self.folder)}")
            server = _read(self.folder)
            if server is not None and server.healthy(timeout=left):
                return server.url
            time.sleep(0.02)
        raise ServerUnavailable(
            f"The local Prefect server does not answer after {timeout:.0f} s. 'visage down' stops it, "
            f"and the next run starts it afresh.{_last_words(self.folder)}"
        )


def _check_answers(url: str) -> None:
    from urllib.error import HTTPError  # noqa: PLC0415 - only who names a server needs it
    from urllib.request import urlopen  # noqa: PLC0415

    try:
        urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except HTTPError:  # which is an answer
        return
    except (OSError, ValueError, HTTPException) as error:
        raise ServerUnavailable(
            f"No Prefect server answers at PREFECT_API_URL={url} ({getattr(error, 'reason', error)}). Start it, correct the "
            "variable, or unset it: then a local one is used."
        ) from None


def begin(home: Path) -> PendingServer:
    """Make sure that a server runs whose database and log lie in `home`/prefect. Returns at once, while it starts.

    It belongs to nobody: it survives the caller, and any number of callers share it. One of another Prefect version is
    replaced.
    """
    folder = _folder(home)
    if given := os.environ.get("PREFECT_API_URL"):
        return PendingServer(folder, given)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        descriptor = os.open(_state(folder), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _lock(descriptor, fcntl.LOCK_EX):
                os.ftruncate(descriptor, 0)
                _launch(folder, descriptor)
                return PendingServer(folder)
        finally:
            os.close(descriptor)
        if _is_alive(folder):
            server = _read(folder)
            if server is None or server.version == version("prefect"):
                return PendingServer(folder)
            stop(home)


def use(home: Path) -> str:
    """Start the server of `home` unless it runs, and bring this process's Prefect to it, before that is imported.

    Returns the URL of its API.

    Raises:
        ServerUnavailable: as `PendingServer.url`.
    """
    url = begin(home).url()
    os.environ.update(environment(url, home))
    return url


@contextmanager
def database_made(home: Path) -> Iterator[None]:
    """Have the database of the local server made in the meantime, if there is none yet.

    Its many migrations take the server five seconds, for which the first night would wait.
    """
    folder = _folder(home)
    if (folder / DATABASE).exists() or any(name in os.environ for name in ELSEWHERE):
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What fails here is told by the server itself, which makes what is missing.
    maker = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        env=LEAN | os.environ | {"PREFECT_HOME": str(folder)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        maker.wait()


def status(home: Path) -> Server | None:
    """Return the local server of `home` if one is alive, ready or still starting."""
    folder = _folder(home)
    return _await_state(folder) if _is_alive(folder) else None


def stop(home: Path, patience: float = 10.0) -> bool:
    """Stop the local server of `home`, by force after `patience` seconds. Returns whether there was one.

    Raises:
        ServerUnavailable: it does not end, or a process holds the lock that is none of ours.
    """
    folder = _folder(home)
    if not _is_alive(folder):
        return False
    server = _await_state(folder)
    if server is None:
        raise ServerUnavailable(f"{_state(folder)} is locked by a process that is no Prefect server of ours.")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(server.pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not _is_alive(folder):
                return True
            time.sleep(0.02)
    raise ServerUnavailable(f"The local Prefect server (process {server.pid}) does not end, not even by force.")


def environment(url: str, home: Path) -> dict[str, str]:
    """Return the variables that bring Prefect's client to the server at `url`. To be set before Prefect is imported."""
    settings = {
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # The server keeps everything from INFO on. The terminal is ours: an error reaches it once, as its exception.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    folder = _folder(home)
    server = status(home)
    if server is None or server.url != url:
        return settings | {"PREFECT_API_URL": url}
    bypass = [name for name in os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(",") if name]
    proxies = ",".join(dict.fromkeys([*bypass, HOST]))
    return settings | {
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": _password(folder),
        "PREFECT_HOME": str(folder),
        # JSON, since a variable of its own cannot say null. Stopping the heartbeat costs a second at the end of a flow.
        "PREFECT_FLOWS": '{"heartbeat_frequency": null}',
        "NO_PROXY": proxies,
        "no_proxy": proxies,
    }


def _launch(folder: Path, lock: int) -> None:
    """Start the server detached, and hand it the lock and a socket that already listens on a free port."""
    settings = LEAN | os.environ
    settings |= {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_AUTH_STRING": _password(folder),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }
    with socket.create_server((HOST, 0)) as listener, _log(folder).open("wb") as log:
        subprocess.Popen(
            # -P and a path rather than -m: neither the working directory nor this folder shadows a library
            [sys.executable, "-P", __file__, str(lock), str(listener.fileno())],
            env=settings,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock, listener.fileno()),
            start_new_session=True,
        )


def _serve(lock: int, listener: int) -> None:
    """Be the server: say how to reach it in the locked file, then answer until told to stop."""
    os.set_inheritable(lock, False)
    os.set_inheritable(listener, False)
    connections = socket.socket(fileno=listener)
    server = Server(os.getpid(), connections.getsockname()[1], version("prefect"))
    os.pwrite(lock, json.dumps(asdict(server)).encode(), 0)
    threading.Thread(target=_end_without_home, args=(lock,), daemon=True).start()

    import uvicorn  # noqa: PLC0415 - heavy, and only for this process
    from prefect.server.api.server import create_app  # noqa: PLC0415

    config = uvicorn.Config(create_app(final=True), log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[connections])


def _make_database(folder: Path) -> None:
    """Make an empty database, aside: killed in the middle, nothing is left that a server would take for whole."""
    for left in folder.glob("making-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as aside:
        made = Path(aside) / DATABASE
        os.environ[DATABASE_URL] = f"sqlite+aiosqlite:///{made}"

        from prefect.server.database import provide_database_interface  # noqa: PLC0415 - heavy, only for this process

        async def make() -> None:
            database = provide_database_interface()
            await database.create_db()
            await (await database.engine()).dispose()

        asyncio.run(make())
        with closing(sqlite3.connect(made)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with suppress(FileExistsError):  # a server was faster
            (folder / DATABASE).hardlink_to(made)


def _end_without_home(lock: int) -> None:
    """End this server once its folder has been deleted: nobody can find it any more."""
    while os.fstat(lock).st_nlink > 0:
        time.sleep(2)
    os.kill(os.getpid(), signal.SIGTERM)


def _folder(home: Path) -> Path:
    return home.absolute() / "prefect"


def _state(folder: Path) -> Path:
    return folder / "server.json"


def _log(folder: Path) -> Path:
    return folder / "server.log"


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(folder: Path) -> bool:
    """Whether a process holds the lock. Asking takes a shared lock for a moment, which disturbs nobody else who asks."""
    try:
        descriptor = os.open(_state(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _read(folder: Path) -> Server | None:
    """Read what the living server has written; None in its first moments."""
    written = _state(folder).read_text()
    return Server(**json.loads(written)) if written else None


def _await_state(folder: Path, patience: float = 5.0) -> Server | None:
    deadline = time.monotonic() + patience
    while (server := _read(folder)) is None and _is_alive(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    return server


def _password(folder: Path) -> str:
    """Return the server's user and password: other users and web pages of this machine can reach its port, too."""
    path = folder / "password"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"visage:{secrets.token_urlsafe(32)}")
    return path.read_text()


def _last_words(folder: Path, lines: int = 15) -> str:
    path = _log(folder)
    said = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
    return f" The end of {path}:\n" + "\n".join(said) if said else f" It left no word in {path}."


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _make_database(Path(sys.argv[1]))
    else:
        _serve(*map(int, sys.argv[1:]))
