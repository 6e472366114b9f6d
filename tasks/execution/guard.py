"""One bad item never takes its neighbours along: whether it breaks a stage, hangs in it, or needs too much memory."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tasks.execution.time_limit import TimedOut, Workers
from tasks.photo_faces import PhotoFaces

log = logging.getLogger("visage")
Item = TypeVar("Item")
Result = TypeVar("Result")
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_ALLOC_FAILED",
)  # torch's, on any device


class _Clock:
    """The threads of this process in which stages work, so that one that hangs can be given up."""

    def __init__(self) -> None:
        self.workers: Workers | None = None

    def start(self, seconds: float, threads: int) -> None:
        if self.workers is not None:
            self.workers.close()
        self.workers = Workers(threads, seconds, "stage")

    def __call__(self, work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> Sequence[Result]:
        return work(items) if self.workers is None else self.workers(work, items)


_clock = _Clock()


def set_time_limit(seconds: float, threads: int = 1) -> None:
    """Let no stage of this process work longer than `seconds` on one item. So many `threads` of it have stages work."""
    _clock.start(seconds, threads)


def halving(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Sequence[Result]],
    give_up: Callable[[Item, Exception], Result],
) -> Sequence[Result]:
    """Run `work` on all items; on an error, on halves, down to the item that fails alone, which is given up.

    A batch that takes longer than the time limit is done item by item: each further half would cost the whole limit again.
    """
    if not items:
        return []
    try:
        return _clock(work, items)
    except Exception as error:
        if len(items) == 1:
            return [give_up(items[0], error)]
        short_of_memory, late = out_of_memory(error), isinstance(error, TimedOut)
    # Outside of the except clause, where the error's trace would keep alive what filled the memory.
    if short_of_memory:
        _free_memory()
    size = 1 if late else -(-len(items) // 2)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [result for part in parts for result in halving(part, work, give_up)]


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, the machine's or the GPU's, did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in OUT_OF_MEMORY)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def given_up(photo: PhotoFaces, stage: str, error: Exception) -> PhotoFaces:
    """Turn an unexpected error into a failure of the photo that caused it.

    What hung or needed too much memory would cost the next run as much again: it is left to 'visage retry'.
    """
    log.warning("%s: %s failed", photo.key, stage, exc_info=error)
    if isinstance(error, TimedOut):
        message = f"{stage} was given up: {error} (VISAGE_ITEM_SECONDS). 'visage retry' takes it up again."
        return photo.failed(stage, "timeout", message, retryable=False)
    if out_of_memory(error):
        message = f"{stage} needs more memory than there is, for this photo alone. 'visage retry' takes it up again."
        return photo.failed(stage, "out_of_memory", message, retryable=False)
    message = f"{type(error).__name__} in {stage}: {error}. It is tried again at the next run."
    return photo.failed(stage, "error", message, retryable=True)


def guarded(
    stage: str, photos: Sequence[PhotoFaces], work: Callable[[Sequence[PhotoFaces]], list[PhotoFaces]]
) -> list[PhotoFaces]:
    """Run a stage's `work`, which keeps the order, on the photos that are still good. Its time is shared out evenly."""
    good = [photo for photo in photos if photo.failure is None and not photo.shared]
    start = time.perf_counter()
    results = halving(good, work, lambda photo, error: given_up(photo, stage, error))
    share = (time.perf_counter() - start) / max(len(good), 1)
    done = iter(results)
    return [next(done).timed(stage, share) if photo.failure is None and not photo.shared else photo for photo in photos]
