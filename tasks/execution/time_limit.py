"""Time limits: what takes too long is given up, and its neighbours go on.

Python cannot stop a thread, so one that hangs is left behind; it ends with the process. Code that also keeps Python's lock
cannot be helped here.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
GRACE = 20.0  # s, for calls that are in hand when the process is to end


_at_work: set[threading.Thread] = set()


def at_work() -> bool:
    """Whether a thread still makes a call, in time or given up.

    One that comes out of native code after Python has gone aborts the process.
    """
    return bool(_at_work)


class TimedOut(Exception):
    """Something took longer than it may."""


class Call(Generic[Result]):
    """A call that a worker makes, sooner or later."""

    def __init__(self, work: Callable[..., Result], arguments: tuple[Any, ...]) -> None:
        self.work, self.arguments = work, arguments
        self.result: Future[Result] = Future()
        self.started: float | None = None

    def make(self) -> None:
        try:
            outcome = self.work(*self.arguments)
        except BaseException as error:
            with suppress(InvalidStateError):  # given up meanwhile
                self.result.set_exception(error)
        else:
            with suppress(InvalidStateError):
                self.result.set_result(outcome)


class Workers:
    """A few threads, in which no call may take more than `seconds`. Whoever waits for results sees to that.

    Unlike those of `concurrent.futures` they don't keep the process from ending.
    """

    def __init__(self, count: int, seconds: float, name: str) -> None:
        self.seconds, self.name = seconds, name
        self._waiting: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._running: dict[threading.Thread, Call[Any]] = {}
        for _ in range(count):
            self._hire()

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Call[Result]:
        """Have a call made as soon as a thread is free."""
        call = Call(work, arguments)
        self._waiting.put(call)
        return call

    def wait(self, call: Call[Result]) -> Result:
        """Wait for a call's result.

        Raises:
            TimedOut: if it takes longer than it may.
        """
        try:
            self._wait(call)
        except BaseException:  # an interrupt: the process is about to end
            self._let_finish()
            raise
        return call.result.result()

    def _wait(self, call: Call[Any]) -> None:
        while not call.result.done():
            started = [other.started for other in self._running.copy().values() if other.started is not None]
            left = min(started, default=time.monotonic()) + self.seconds - time.monotonic()
            with suppress(TimeoutError):
                call.result.exception(max(left, 0.0))
            self._give_up_the_late()

    def __call__(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Make one call and wait for it."""
        return self.wait(self.submit(work, *arguments))

    def close(self) -> None:
        """Let the threads end once they have nothing left to do; what is in hand is waited for within its limit."""
        self._waiting.put(None)
        self._let_finish()

    def _let_finish(self) -> None:
        """Wait for what is in hand, which would else abort the process (`at_work`)."""
        end = time.monotonic() + GRACE
        for call in self._running.copy().values():
            due = end if call.started is None else min(end, call.started + self.seconds)
            with suppress(BaseException):
                call.result.exception(max(due - time.monotonic(), 0.0))

    def _hire(self) -> None:
        threading.Thread(target=self._serve, name=self.name, daemon=True).start()

    def _serve(self) -> None:
        me = threading.current_thread()
        while (call := self._waiting.get()) is not None:
            call.started = time.monotonic()
            self._running[me] = call
            _at_work.add(me)
            call.make()
            _at_work.discard(me)
            if self._running.pop(me, None) is None:
                return  # somebody took my place when I was late
            del call  # do not hold a batch of pixels while waiting for the next
        self._waiting.put(None)  # for the others

    def _give_up_the_late(self) -> None:
        for thread, call in self._running.copy().items():
            late = call.started is not None and time.monotonic() - call.started >= self.seconds
            if late and self._running.pop(thread, None) is not None:
                with suppress(InvalidStateError):
                    call.result.set_exception(TimedOut(f"it took more than {self.seconds:g} s"))
                self._hire()
