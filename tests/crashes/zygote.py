"""A process that has everything imported, and forks one victim after the other: a death costs no second import of torch.

Orders come as lines of JSON on stdin, answers go as lines of JSON to stdout. A victim dies by its own SIGKILL right before
its n-th event (a statement or commit of any database, a file renamed or removed), by its n-th event of a file, which are the
moments between store and catalog, or by ours after so many seconds.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session


@dataclass(frozen=True)
class Ended:
    """How a victim ended: killed or not, after how many seconds, and how many events it saw if it came to its end."""

    killed: bool
    code: int
    seconds: float
    events: int
    files: int
    said: str


class Zygote:
    """The handle of the process: `run` makes one victim of a function."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def run(
        self,
        job: str,
        arguments: dict[str, Any],
        at_event: int | None = None,
        at_file: int | None = None,
        after: float | None = None,
    ) -> Ended:
        """Call `job`, written "module:function", with `arguments` in a process of its own, which may be killed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"job": job, "arguments": arguments, "at_event": at_event, "at_file": at_file, "after": after}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


@contextmanager
def zygote(scratch: Path, *modules: str) -> Iterator[Zygote]:
    """Start the process, which imports `modules` once and ends with the context."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crashes.zygote", str(scratch), *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Zygote(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


class _Events:
    def __init__(self, at: int | None, at_file: int | None) -> None:
        self.at, self.at_file = at, at_file
        self.seen, self.files, self.lock = 0, 0, threading.Lock()

    def happen(self, *_: object, file: bool = False) -> None:
        with self.lock:
            self.seen += 1
            self.files += file
            if self.seen == self.at or (file and self.files == self.at_file):
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        for target, name in ((Engine, "before_cursor_execute"), (Engine, "commit"), (Session, "after_commit")):
            event.listen(target, name, self.happen)
        for name in ("replace", "unlink", "rename"):
            setattr(os, name, self._around(getattr(os, name)))

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.happen(file=True)
            result = call(*arguments, **options)
            self.happen(file=True)
            return result

        return watched


def _victim(order: dict[str, Any], scratch: Path) -> None:
    """Do the job, and write down how many events there were."""
    said = os.open(scratch / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    events = _Events(order["at_event"], order["at_file"])
    module, _, function = order["job"].partition(":")
    events.watch()
    getattr(import_module(module), function)(**order["arguments"])
    (scratch / "events").write_text(f"{events.seen} {events.files}")


def main(scratch: Path, modules: list[str]) -> None:
    for module in modules:
        import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        (scratch / "events").unlink(missing_ok=True)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _victim(order, scratch)
                code = 0
            except BaseException:
                import traceback  # noqa: PLC0415

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ended = 0
        while not ended:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and order["after"] is not None and time.monotonic() - start > order["after"]:
                os.kill(pid, signal.SIGKILL)
                ended, status = os.waitpid(pid, 0)
            if not ended:
                time.sleep(0.002)
        counted = scratch / "events"
        seen, files = counted.read_text().split() if counted.exists() else (0, 0)
        answer = {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - start,
            "events": int(seen),
            "files": int(files),
            "said": (scratch / "said").read_text(errors="replace")[-2000:],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
