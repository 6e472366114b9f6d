"""A Ray cluster of several nodes for tests: real `ray start`, each node with processes of its own, as if on its own machine.

With `tests.namespaces.machines` each has a network of its own as well.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.telemetry import SILENCE
from tests.namespaces import Machine

RAY = Path(sys.executable).parent / "ray"
STORE_BYTES = 150 * 2**20
LOOPBACK = "127.0.0.1"


@dataclass
class Cluster:
    """A head without a processor for work, and nodes that do it, each on the next of `machines` if there are any."""

    folder: Path
    port: int
    environment: dict[str, str]
    machines: list[Machine] = field(default_factory=list)
    pinned: bool = False
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.machines[0].address if self.machines else LOOPBACK}:{self.port}"

    @property
    def on_head(self) -> list[str]:
        """What a command line begins with that is to run on the head's machine, as a driver must."""
        return self.machines[0].command if self.machines else []

    def add_node(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start a node; its processes are one group, so that they can be killed as a machine dies."""
        log = (self.folder / f"node-{len(self.nodes)}.log").open("wb")
        place: list[str] = []
        if self.machines:
            machine = self.machines[len(self.nodes)]
            place, options = machine.command, (*options, f"--node-ip-address={machine.address}")
        if self.pinned and self.nodes:  # not the head, which does no work
            place = [*place, "taskset", "--cpu-list", str(len(self.nodes) - 1)]
        node = subprocess.Popen(
            [
                *place,
                RAY,
                "start",
                "--block",
                "--disable-usage-stats",
                f"--object-store-memory={STORE_BYTES}",
                *options,
            ],
            env=self.environment,
            cwd=Path(__file__).parents[1],  # workers import our code from here, as from an image
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.nodes.append(node)
        return node

    def add_worker(self, cpus: int = 1, gpus: int = 0) -> "subprocess.Popen[bytes]":
        return self.add_node(f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")

    def wait_for(self, nodes: int, patience: float = 120) -> None:
        """Wait until so many nodes are there."""
        code = (
            "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        deadline = time.monotonic() + patience
        while True:
            asked = subprocess.run(
                [*self.on_head, sys.executable, "-c", code, self.address],
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.stdout.strip().endswith(str(nodes)):
                return
            assert time.monotonic() < deadline, asked.stdout + asked.stderr[-2000:] + self.said()
            time.sleep(1)

    def said(self) -> str:
        """The end of what each node has said."""
        return "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("node-*.log")))

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """Let a node die with everything on it, at once."""
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        node.wait()


@contextmanager
def ray_cluster(
    workers: int, cpus: int = 1, gpus: int = 0, machines: Sequence[Machine] = (), pinned: bool = False
) -> Iterator[Cluster]:
    """Run a head and `workers` nodes of `cpus` processors, and as many GPUs as they shall say that they have, each.

    `pinned`: each to one core of this machine.
    """
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="visage-nodes-", ignore_cleanup_errors=True) as name:
        environment = os.environ | SILENCE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        cluster = Cluster(Path(name), port, environment, list(machines), pinned)
        place = [] if machines else [f"--node-ip-address={LOOPBACK}"]
        try:
            cluster.add_node(
                "--head", f"--port={port}", *place, "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false",
                f"--temp-dir={name}/ray",
            )  # fmt: skip
            cluster.wait_for(1)
            for number in range(workers):
                cluster.add_worker(cpus, gpus)
                cluster.wait_for(2 + number)  # two at once may choose the same names in Ray's folder
            yield cluster
        finally:
            for node in cluster.nodes:
                if node.poll() is None:
                    cluster.kill(node)
