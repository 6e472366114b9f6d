"""Nobody waits for ever for processes that find no room in a cluster."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from infra.ray_room import RoomLost, watched


def nothing() -> None:
    pass


def lost() -> None:
    raise RoomLost("1 GPU needed, 0 GPU there")


def test_batches_come_through_in_their_order_and_so_does_an_error() -> None:
    def three() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("broken")

    stream = watched(three(), nothing)
    assert [next(stream) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    assert list(watched(iter([1, 2, 3]), lost)) == [1, 2, 3]


def test_waiting_ends_when_the_room_is_lost_and_only_then() -> None:
    held = threading.Event()

    def slow() -> Iterator[int]:
        time.sleep(0.3)
        yield 1
        held.wait(60)

    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if held_up:
            lost()

    held_up = False
    stream = watched(slow(), check, silence=0.1)
    assert next(stream) == 1
    assert asked >= 1
    held_up = True
    with pytest.raises(RoomLost, match="1 GPU needed"):
        next(stream)
    held.set()


def test_who_stops_listening_leaves_no_thread_behind() -> None:
    with closing(watched(iter(range(100)), nothing)) as stream:
        assert next(stream) == 0
    deadline = time.monotonic() + 5
    while any(thread.name == "batches" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
