"""Work side by side in threads of one process, its results in order.

Models compute outside of Python's lock. Two photographs at once, one thread each, keep two processors busier than two threads
inside one small network, and what Python does for one photograph happens while the other's models compute.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

from tasks.execution.time_limit import Call, Workers

FOREVER = 1e9  # s: what hangs within an item is given up by limits of its own

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(items: Iterable[Item], work: Callable[[Item], Result], threads: int) -> Generator[Result]:
    """Let `work` be done on the items in `threads`, and yield the results in the order of the items.

    One item more than there are threads is in hand or waiting, whatever the reader's speed. An error of the items is raised
    after the results of those that came before it; one of the work ends it all.
    """
    over, workers = threading.Event(), Workers(threads, FOREVER, "worker")

    def unless_over(item: Item) -> Result:
        if over.is_set():
            raise RuntimeError("nobody waits for this any more")
        return work(item)

    calls: deque[Call[Result]] = deque()
    broken: Exception | None = None
    coming = iter(items)
    try:
        while True:
            try:
                calls.append(workers.submit(copy_context().run, unless_over, next(coming)))
            except StopIteration:
                break
            except Exception as error:
                broken = error
                break
            if len(calls) > threads:
                yield workers.wait(calls.popleft())
        while calls:
            yield workers.wait(calls.popleft())
        if broken is not None:
            raise broken
    finally:
        over.set()
        workers.close()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads in this thread, and in each that begins within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
