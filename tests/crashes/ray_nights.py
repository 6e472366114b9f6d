"""Kills in a night that Ray works on: of an actor's process, of Ray itself, of the driver."""

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.ray_cluster import PREFIX
from infra.settings import PREFIX as VARIABLES

DRIVER = """
import sys
from flows import night as steps
from flows.night import night
from infra.settings import load_settings
with night(load_settings(), "archive") as state:
    steps.discover_images(state)
    steps.process_images(state, lambda: print("batch", flush=True))
    steps.group_faces(state)
    steps.audit_catalog(state)
"""
VICTIMS = ("worker", "driver", "raylet", "gcs_server", "ray::DashboardAgent")
PATIENCE = 180  # seconds in which a night must have ended one way or the other, whatever was killed


# A decoder that dies of every photo with a certain ending, in every process that has this file's folder on its path.
DEADLY = """
import importlib.abc, importlib.util, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "tasks.decode":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            decode = module.decode
            def deadly(data, *arguments, **options):
                if data.endswith(b"deadly"):
                    os.kill(os.getpid(), 9)
                return decode(data, *arguments, **options)
            module.decode = deadly
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class RayEnded:
    """How the driver ended: its exit code (negative: the signal), what it said, and what it left running."""

    code: int
    said: str
    seconds: float
    survivors: list[str]


def deadly_night(settings: dict[str, Any], scratch: Path) -> int:
    """Run a night whose decoder dies of some photos; returns its exit code (negative: the signal)."""
    scratch.mkdir(exist_ok=True)
    (scratch / "sitecustomize.py").write_text(DEADLY)
    path = os.pathsep.join([str(scratch), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = _environment(settings) | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", DRIVER], env=environment, capture_output=True, check=False).returncode


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    return others | {VARIABLES + name.upper(): str(value) for name, value in settings.items()}


def ray_night(settings: dict[str, Any], victim: str, rng: random.Random) -> RayEnded:
    """Run a night with Ray and kill `victim` at a random moment of it: one of `VICTIMS`."""
    environment = _environment(settings | {"engine": "ray"})
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-c", DRIVER], env=environment, stdout=subprocess.PIPE, stderr=said, text=True
        ) as driver,
    ):
        family = _kill(driver, victim, rng)
        start = time.monotonic()
        driver.wait(PATIENCE)
        seconds = time.monotonic() - start
        _, alive = psutil.wait_procs(family, timeout=90)  # Ray's agents take their time
        said.seek(0)
        return RayEnded(driver.returncode, said.read()[-3000:], seconds, [process.name() for process in alive])


def _kill(driver: "subprocess.Popen[str]", victim: str, rng: random.Random) -> list[psutil.Process]:
    """Kill it between the start of the actors and the end of the work; returns the processes there were."""
    while driver.poll() is None:
        family = psutil.Process(driver.pid).children(recursive=True)
        if _called(family, "ray::MapWorker"):
            break
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 2))  # 40 photographs take a few seconds
    family = psutil.Process(driver.pid).children(recursive=True)
    actors = _called(family, "ray::MapWorker")
    if victim == "driver":
        driver.kill()
    elif victim == "worker":
        rng.choice(actors).kill()
    else:
        _called(family, victim)[0].kill()
    return family


def _called(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    return [process for process in processes if _name(process).startswith(name)]


def _name(process: psutil.Process) -> str:
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return command[0] if command and command[0].startswith("ray::") else process.name()


def folders_left() -> list[Path]:
    """What runs of processes that are gone have left in the temporary folder."""
    found = Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    return [path for path in found if not psutil.pid_exists(int(path.name.removeprefix(PREFIX).split("-")[0]))]
