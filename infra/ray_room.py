"""Room in a Ray cluster for all processes of a job: an actor that finds none waits for ever, and says nothing."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

from infra import logs

log = logs.logger()

T = TypeVar("T")
ROOM_SECONDS = 3600.0  # how long other work may keep the cluster busy before a job gives up
SAID_AFTER = 10.0
SILENCE_SECONDS = 60.0  # without a result, after which the cluster is asked whether all processes still fit


class NoRoom(RuntimeError):
    """The cluster does not have free what the job's processes need."""


class RoomLost(NoRoom):
    """A node has left the cluster, and the job's processes do not all fit on what is left."""


class Plan(Protocol):
    """How a job means to use the cluster."""

    @property
    def wanted(self) -> Mapping[str, float]:
        """What it needs free, by Ray's names of resources: {"CPU": 3.6, "GPU": 2}."""
        ...


P = TypeVar("P", bound=Plan)


def await_room(plan: Callable[[], P], patience: float | None = None) -> P:
    """Wait until the cluster has free what the job wants, and return its plan; the log says so.

    It is planned anew every time, since a cluster counts a node that has died for half a minute longer.

    Raises:
        NoRoom: after `patience` seconds (ROOM_SECONDS), naming what is missing.
    """
    import ray  # noqa: PLC0415

    patience = ROOM_SECONDS if patience is None else patience
    start, said = time.monotonic(), False
    while lacking := _lacking((made := plan()).wanted, ray.available_resources()):
        waited = time.monotonic() - start
        if waited > SAID_AFTER and not said:
            said = True
            log.warning("waiting for room in the Ray cluster", lacking=lacking)
        if waited > patience:
            raise NoRoom(
                f"the Ray cluster has had no room for {patience:.0f} s: {lacking}. End other work on it or add nodes; "
                "'visage run' goes on where this run ended"
            )
        time.sleep(0.5)
    return made


def check_room(wanted: Mapping[str, float]) -> None:
    """See that the nodes that are left could hold what is `wanted`.

    Raises:
        RoomLost: naming what is missing.
    """
    import ray  # noqa: PLC0415

    if lacking := _lacking(wanted, ray.cluster_resources()):
        raise RoomLost(f"a node has left the Ray cluster, whose processes wait for others that find no room: {lacking}")


def _lacking(wanted: Mapping[str, float], there: Mapping[str, float]) -> str:
    """Which resources are less than wanted, in words; "" if none are."""
    rounding = 1e-3  # Ray counts in units of a ten-thousandth
    short = [name for name, amount in wanted.items() if there.get(name, 0) < amount - rounding]
    return ", ".join(f"{wanted[name]:g} {name} needed, {there.get(name, 0):g} there" for name in short)


def watched(batches: Iterator[T], check: Callable[[], None], silence: float | None = None) -> Generator[T]:
    """Pass on batches; whenever none has come for `silence` seconds, `check` may raise, and so end the waiting."""
    silence = SILENCE_SECONDS if silence is None else silence
    arrived: queue.Queue[T | BaseException | None] = queue.Queue(1)
    over = threading.Event()

    def put(item: T | BaseException | None) -> None:
        while not over.is_set():
            with suppress(queue.Full):
                arrived.put(item, timeout=0.5)
                return

    def walk() -> None:
        try:
            for batch in batches:
                put(batch)
                if over.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=walk, name="batches", daemon=True).start()  # it may wait for ever: nobody waits for it
    try:
        while True:
            try:
                item = arrived.get(timeout=silence)
            except queue.Empty:
                check()
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
