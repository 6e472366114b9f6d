"""Run `visage` as a person does, in this process, so that it need not import torch for every test."""

import contextlib
import io
import json
import signal
import sys
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from flows.cli import command


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def visage(*arguments: object) -> Ended:
    """Run `visage ARGUMENTS` with the environment as it is."""
    out, err, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    code: object = 0
    with (
        patch.object(sys, "argv", ["visage", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            command()
        except SystemExit as ended:
            code = ended.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    return Ended(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())
