"""The `visage` command."""

import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command. An interruption ends it with exit code 130 from the first moment on, also while it is imported."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from flows.cli.app import run  # noqa: PLC0415 - takes a second
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
