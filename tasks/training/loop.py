"""What every worker does, whatever is trained: steps, judgements and checkpoints, from where a training was left."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Protocol

import torch

from infra.ray_cluster import set_threads

STATE, PROGRESS = "state.pt", "step"
RECIPE = 2  # another one whenever steps change: a training that an earlier release began cannot go on, and begins anew
WARM_UP = 0.1  # share of the steps
MAX_GRADIENT = 5.0  # a larger norm is cut to this


class Diverged(RuntimeError):
    """The loss is not finite any more; the message says what to do."""


class Training(Protocol):
    """The state of a training in one worker: `step` steps are taken, and it is `over` after the last one.

    It is judged before the first step; after a step at which it `pauses` it is judged and saved. `save`, on the first worker,
    writes all that the next steps depend on, and tells whether it did.
    """

    @property
    def step(self) -> int: ...
    @property
    def over(self) -> bool: ...
    @property
    def pauses(self) -> bool: ...
    def begin(self) -> None: ...
    def resume(self, path: Path) -> None: ...
    def join(self) -> None: ...
    def take(self) -> None: ...
    def judge(self) -> None: ...
    def save(self, path: Path) -> bool: ...


def loop(build: Callable[[int, int, torch.device], Training], threads: int) -> None:
    """Train from the last checkpoint, or from the beginning if there is none. Ray Train runs this in every worker.

    `build` makes the training of a worker from its rank, the number of workers and its device.
    """
    import ray.train.torch  # noqa: PLC0415 - only workers need it

    set_threads(threads)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    training = build(context.get_world_rank(), context.get_world_size(), device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        training.begin()
        training.judge()
    else:
        with checkpoint.as_directory() as folder:
            training.resume(Path(folder, STATE))
    training.join()
    while not training.over:
        training.take()
        if training.pauses or training.over:
            training.judge()
            with tempfile.TemporaryDirectory() as folder:
                saved = training.save(Path(folder, STATE))
                kept = ray.train.Checkpoint.from_directory(folder) if saved else None
                ray.train.report({"step": training.step}, checkpoint=kept)


class Progress:
    """Lets whoever watches `folder` know how many steps are taken; the first worker speaks for all."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.file, self.speaks, self.told = folder / PROGRESS, rank == 0, 0.0

    def tell(self, step: int, last: bool) -> None:
        """Note the number of steps, at most once in a second but for the last one."""
        if self.speaks and (last or monotonic() > self.told + 1):
            self.file.write_text(str(step), encoding="utf-8")
            self.told = monotonic()


def schedule(progress: float) -> float:
    """Factor of the learning rate: up in a straight line, then down along half a cosine, for progress in 0..1.

    It is 0 at both ends. Trainings take it at the middle of each step, so that the last one changes something, too.
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
