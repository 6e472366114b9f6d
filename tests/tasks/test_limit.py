"""What takes too long is given up, and its neighbours go on."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tasks.execution.time_limit import TimedOut, Workers

LIMIT = 0.3


@pytest.fixture
def workers() -> Iterator[Workers]:
    some = Workers(2, LIMIT, "test")
    yield some
    some.close()


def hang(*_: object) -> None:
    threading.Event().wait()


def test_calls_that_hang_are_given_up_and_all_others_are_made(workers: Workers) -> None:
    start = time.monotonic()
    calls = [workers.submit(hang) if i in (0, 1, 4) else workers.submit(pow, i, 2) for i in range(8)]
    results = []
    for call in calls:
        try:
            results.append(workers.wait(call))
        except TimedOut as error:
            results.append(str(error))
    late = "it took more than 0.3 s"
    assert results == [late, late, 4, 9, late, 25, 36, 49]
    assert time.monotonic() - start < 5


def test_waiting_for_a_call_behind_those_that_hang_does_not_take_for_ever(workers: Workers) -> None:
    for _ in range(4):
        workers.submit(hang)
    assert workers(pow, 2, 3) == 8


def test_an_error_is_raised_where_the_result_is_waited_for(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        workers(lambda: 1 / 0)
    with pytest.raises(KeyboardInterrupt):
        workers(interrupt)
    assert workers(pow, 2, 3) == 8


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_was_given_up_may_end_later_without_harm(workers: Workers) -> None:
    late = threading.Event()
    with pytest.raises(TimedOut):
        workers(late.wait)
    late.set()
    assert [workers(pow, i, 2) for i in range(6)] == [0, 1, 4, 9, 16, 25]


def test_threads_that_hang_do_not_keep_the_process_from_ending() -> None:
    code = (
        "import threading; from tasks.execution.time_limit import Workers; workers = Workers(1, 9, 'test')\n"
        "workers.submit(threading.Event().wait); print('end')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "end\n"
