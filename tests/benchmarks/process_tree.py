"""Peak memory of a process with all its descendants."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from subprocess import Popen

import psutil

INTERVAL = 0.1  # s


@dataclass
class Peak:
    """The most memory that a process tree held at once, in bytes, and who held it then."""

    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)


def watch(process: "Popen[bytes]") -> Peak:
    """Sample a process and its descendants until it ends.

    What counts is PSS: pages that several processes share (libraries, Ray's object store) are counted once in the sum.
    """
    peak = Peak()
    while process.poll() is None:
        parts: Counter[str] = Counter()
        for member in _tree(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                parts[_part(member, process.pid)] += member.memory_full_info().pss
        if parts.total() > peak.total:
            peak = Peak(parts.total(), dict(parts))
        time.sleep(INTERVAL)
    return peak


def _tree(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        yield root
        yield from root.children(recursive=True)


def _part(process: psutil.Process, root: int) -> str:
    if process.pid == root:
        return "visage"
    command = " ".join(process.cmdline())
    return "Prefect server" if "prefect_server.py" in command else "Ray" if "ray" in command.lower() else "other"
