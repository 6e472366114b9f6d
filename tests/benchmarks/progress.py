"""What the benchmarks say while they work."""

import sys
import time

_began = time.monotonic()


def say(text: str) -> None:
    """Print a line to stderr with the time since the start, so that stdout holds the table alone."""
    print(f"[{time.monotonic() - _began:5.0f} s] {text}", file=sys.stderr, flush=True)
