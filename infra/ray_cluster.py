"""A Ray cluster for the length of a job: one of our own on this machine, or an existing one by its address."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from infra.telemetry import silence

PREFIX = "visage-ray-"
# A block is what travels at once. With Ray's 128 MiB, blocks of crops fill the object store before a slow consumer can
# hold their producer back: 1,500 images of 1 MB spilled 1.7 GB to disk where 16 MiB spilled nothing.
BLOCK_BYTES = 16 * 2**20
PATIENCE = 30.0  # s, in which a cluster that was begun and is not wanted any more has to end


@contextmanager
def connected(
    address: str | None = None, cpus: int | None = None, object_store_bytes: int = 512 * 2**20
) -> Iterator[None]:
    """Be connected to the cluster at `address`, or without one to a local cluster that ends with the context.

    The local one uses `cpus` processors (None: all) and at most `object_store_bytes` of shared memory for what travels
    between actors; more is spilled to its temporary folder, which only this user can enter and which goes with it.
    SIGTERM leaves the context as SystemExit would, unless a handler of the caller's own is in place.
    """
    _prepare_environment()
    if address is not None:
        with _connection(address=address):
            yield
        return
    if _ahead:
        with closing(_ahead.pop()) as ahead:
            if begun := ahead.address():
                with _connection(address=begun):
                    yield
                return
    _sweep()
    _require_token()
    # Right under the system's folder: Ray puts sockets in it, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        options = {"num_cpus": cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
        with _connection(address="local", _temp_dir=f"{folder}/ray", **options):
            yield


class _Ahead:
    """A process that starts a local cluster and keeps it until the pipe to it ends, however this process does."""

    def __init__(self, cpus: int | None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from infra import ray_cluster; ray_cluster._keep({cpus})"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt from the terminal is ours to answer
            text=True,
        )

    def address(self) -> str:
        """Wait until the cluster is there; empty if it could not be started."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End the cluster."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()


_ahead: list[_Ahead] = []


def begin(cpus: int | None = None) -> None:
    """Begin to start a local cluster, which takes seconds, while this process does other things.

    The next `connected` without an address takes it over, or `end` ends it. It ends with this process, too.
    """
    _prepare_environment()
    _require_token()
    os.environ["RAY_AUTH_MODE"] = "token"  # in time: who joins a cluster imports Ray later than this
    _ahead.append(_Ahead(cpus))


def end() -> None:
    """End a cluster that was begun, and that nobody has taken over."""
    while _ahead:
        _ahead.pop().close()


def _keep(cpus: int | None) -> None:
    """Be the process that keeps a cluster: say where it is, and wait for the end of whoever asked for it."""
    with connected(cpus=cpus):
        import ray  # noqa: PLC0415

        print(ray.get_runtime_context().gcs_address, flush=True)
        sys.stdin.read()


def gpus() -> int:
    """Count the GPUs of the cluster, which spares the driver the import of torch. To be asked while connected."""
    import ray  # noqa: PLC0415

    return int(ray.cluster_resources().get("GPU", 0))


def nodes() -> int:
    """Count the nodes that have processors for work. To be asked while connected."""
    import ray  # noqa: PLC0415

    return sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())


def processors() -> int:
    """Count the processors of the cluster. To be asked while connected."""
    import ray  # noqa: PLC0415

    return round(ray.cluster_resources().get("CPU", 0))


def set_threads(count: int) -> None:
    """Let torch compute with `count` threads in this process: Ray gives an actor only one (OMP_NUM_THREADS=1)."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(count)


def device() -> str:
    """Where this process computes: on a GPU if it has one, which an actor has if it has reserved some of it."""
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _connection(**options: Any) -> Iterator[None]:
    """Connect, and disconnect (or end the local cluster) however the context is left."""
    import ray  # noqa: PLC0415

    in_main_thread = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with _native_errors_muted():  # Ray's C++ side announces there that it will be quiet
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        if in_main_thread:  # Ray's own handler would abort this process and leave its folder behind
            signal.signal(signal.SIGTERM, on_terminate if callable(on_terminate) else _exit)
        _configure_data()
        yield
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, on_terminate)


def _configure_data() -> None:
    """Bound what travels at once, and keep the terminal ours: failures arrive as exceptions."""
    import ray._private.worker  # noqa: PLC0415
    import ray.data  # noqa: PLC0415

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.max_errored_blocks = -1  # a block whose worker died is missing, and missed by the caller; the others go on
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray has no setting for this: news of a worker's death goes to stdout, into the midst of our JSON.
    ray._private.worker.print_to_stdstream = lambda *news, **options: None


@contextmanager
def _native_errors_muted() -> Iterator[None]:
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _prepare_environment() -> None:
    silence()
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def _require_token() -> None:
    """Let local clusters refuse every client without this process's token: Ray listens on all interfaces, always.

    One token for all of them, since Ray reads it only once in the life of a process.
    """
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if os.environ.get("RAY_AUTH_MODE") != "token":
        # With no mode set, ray.init turns tokens on. A mode set here would come too late for a Ray that is imported.
        os.environ.pop("RAY_AUTH_MODE", None)


def _sweep() -> None:
    """Remove what killed runs of this user have left: spilled objects are people's faces."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = int(folder.name.removeprefix(PREFIX).split("-")[0])
        if folder.stat().st_uid == os.getuid() and not psutil.pid_exists(pid):
            shutil.rmtree(folder, ignore_errors=True)
