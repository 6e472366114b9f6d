"""Two trainings of the same as programs of their own: one undisturbed, one killed in the middle and started again."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from pydantic import BaseModel

from infra.settings import Settings
from tasks.training.run import FOLDER

SECONDS = 300


def whole_and_killed(
    program: str, settings: Settings, place: Path, options: BaseModel, kill_at: int
) -> tuple[str, str]:
    """Digests of the weights of both. The one in the home `place`/killed is killed (-9) once it says `kill_at` steps.

    `program` is a module that takes HOME WEIGHTS URI OPTIONS, and prints "step N TOTAL" lines and at last "digest DIGEST".
    """

    def start(home: str) -> subprocess.Popen[str]:
        uri = f"sqlite:///{place / f'{home}.db'}"
        arguments = [str(place / home), str(settings.weights), uri, options.model_dump_json()]
        return subprocess.Popen([sys.executable, "-m", program, *arguments], stdout=subprocess.PIPE, text=True)

    for home in ("whole", "killed"):
        shutil.copyfile(settings.mlflow_uri.removeprefix("sqlite:///"), place / f"{home}.db")
    whole = _digest(start("whole"))
    killed = start("killed")
    assert killed.stdout is not None
    steps, total = 0, 0
    while steps < kill_at:
        line = killed.stdout.readline()
        assert line, "it ended before it could be killed"
        if line.startswith("step"):
            steps, total = (int(number) for number in line.split()[1:])
    killed.kill()
    killed.wait()
    states = (place / "killed" / FOLDER).glob("*/ray/*/state.pt")
    assert 0 < max(torch.load(state, weights_only=True)["step"] for state in states) < total
    return whole, _digest(start("killed"))


def _digest(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=SECONDS)
    found = re.search(r"digest (\w+)", out)
    assert found, out
    return found[1]
