"""Nobody waits for ever for processes that find no room in a cluster."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

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


ANEW = """
from functools import partial
from infra.ray_cluster import connected
from infra.ray_room import RoomLost, check_room, watched

class Same:
    def __call__(self, batch):
        return batch

def work(gpus):
    with connected(cpus=2, object_store_bytes=150 * 2**20):
        import ray.data
        items = ray.data.from_items(list(range(6)), override_num_blocks=6)
        for share in (0, gpus):
            pool = ray.data.ActorPoolStrategy(size=1)
            items = items.map_batches(Same, compute=pool, batch_size=1, num_cpus=0.5, num_gpus=share)
        check = partial(check_room, {"CPU": 1, "GPU": gpus})
        batches = watched(iter(items.iter_batches(batch_size=None)), check, silence=5)
        return sorted(item for batch in batches for item in batch["item"].tolist())

try:
    work(9)
except RoomLost as lost:
    print(lost)
print(work(0))
"""


@pytest.mark.long
def test_a_job_that_lost_its_room_is_begun_anew_in_the_same_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ANEW], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, second = ended.stdout.splitlines()
    assert "processes wait for others that find no room: 9 GPU needed" in first
    assert second == "[0, 1, 2, 3, 4, 5]"
