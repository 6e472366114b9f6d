"""The `visage` command."""

import atexit
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command as this process, which ends with its exit code even if a thread that was given up still computes."""
    codes: list[int] = []
    atexit.register(_end_at_once, codes)  # before any other, and so called after all others
    try:
        command()
    except SystemExit as ended:
        from tasks.execution.time_limit import at_work  # noqa: PLC0415 - nothing delays the first moment

        if isinstance(ended.code, int) and at_work():
            codes.append(ended.code)
        raise


def _end_at_once(codes: list[int]) -> None:
    for code in codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command() -> None:
    """Run the command. An interruption ends it with exit code 130 from the first moment on, also while it is imported."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from flows.cli.app import run  # noqa: PLC0415 - takes a second
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
