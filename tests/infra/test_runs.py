"""Two runs never work on the same keys at once: within a machine, between machines, and after one of them has died."""

import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from itertools import combinations
from threading import Barrier, Thread

import psutil
import pytest
from sqlalchemy import update

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Run, RunStatus, now
from infra.catalog.work.heartbeat import beating
from infra.catalog.work.key_range import EVERY_KEY, KeyRange, ranges
from infra.catalog.work.runs import (
    LEASE,
    LeaseLost,
    RunInProgress,
    close_dead_runs,
    close_run,
    hold,
    open_run,
    process_exists,
    process_started,
)


def a_collection(catalog: Catalog, name: str = "archive") -> int:
    with catalog.write() as session:
        return collections.add(session, name, f"/{name}", [], [], []).id


def opened(catalog: Catalog, collection_id: int, keys: KeyRange = EVERY_KEY) -> int:
    with catalog.write() as session:
        return open_run(session, collection_id, "recipe", keys).id


def elsewhere(catalog: Catalog, run_id: int, silent_for: timedelta) -> None:
    """Let a run be one of another machine that last gave a sign of life so long ago."""
    with catalog.write() as session:
        there = {"host": "another-machine", "heartbeat_at": now() - silent_for}
        session.execute(update(Run).where(Run.id == run_id).values(**there))


def run(catalog: Catalog, run_id: int) -> Run:
    with catalog.read() as session:
        return session.get_one(Run, run_id)


def test_a_run_of_another_machine_is_left_alone_while_it_gives_signs_of_life(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    elsewhere(catalog, opened(catalog, collection_id), silent_for=LEASE / 2)
    with pytest.raises(RunInProgress, match="another-machine") as refused:
        opened(catalog, collection_id)
    assert refused.value.waiting_helps


def test_a_run_of_another_machine_that_fell_silent_is_taken_over(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    silent = opened(catalog, collection_id)
    elsewhere(catalog, silent, silent_for=LEASE + timedelta(seconds=5))
    opened(catalog, collection_id)
    assert run(catalog, silent).status == RunStatus.CRASHED


def test_whoever_was_taken_over_can_write_nothing_more(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    suspended = opened(catalog, collection_id)
    elsewhere(catalog, suspended, silent_for=LEASE + timedelta(seconds=5))
    opened(catalog, collection_id)
    with pytest.raises(LeaseLost, match="closed by another process"), catalog.write() as session:
        hold(session, suspended)
    with catalog.write() as session:
        close_run(session, suspended, RunStatus.DONE, {})
    assert run(catalog, suspended).status == RunStatus.CRASHED


def test_a_run_at_work_gives_signs_of_life_until_it_ends(catalog: Catalog) -> None:
    run_id = opened(catalog, a_collection(catalog))
    elsewhere(catalog, run_id, silent_for=LEASE + timedelta(seconds=5))
    before = threading.active_count()
    with beating(catalog, run_id, every=0.02):
        deadline = time.monotonic() + 20
        while now() - (run(catalog, run_id).heartbeat_at or now()) > LEASE and time.monotonic() < deadline:
            time.sleep(0.02)
        with catalog.write() as session:
            assert [alive.id for alive in close_dead_runs(session)] == [run_id]
    assert threading.active_count() == before


def test_another_process_of_this_machine_is_refused(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    opened(catalog, collection_id)
    script = (
        "from infra.catalog.database import Catalog; from infra.catalog.work.runs import open_run\n"
        f"with Catalog({catalog.url!r}).write() as s: open_run(s, {collection_id}, 'recipe')"
    )
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "RunInProgress" in second.stderr
    assert socket.gethostname() in second.stderr


@pytest.mark.parametrize("seconds", [-1, 1, 3600])
def test_setting_the_clock_ends_no_run(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    collection_id = a_collection(catalog)
    opened(catalog, collection_id)
    boot_time = psutil.boot_time()  # what psutil takes from /proc/stat moves with the clock
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + seconds)
    with pytest.raises(RunInProgress):
        opened(catalog, collection_id)


def test_a_process_is_known_by_its_number_and_by_when_it_began() -> None:
    number = os.getpid()
    assert process_exists(number, process_started())
    assert process_exists(number, psutil.Process().create_time())  # as older versions wrote it
    assert not process_exists(number, process_started() - 2)
    assert not process_exists(number, process_started() + 1e9)  # the machine was started again


def test_runs_on_different_keys_go_side_by_side_and_overlapping_ones_do_not(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    for keys in ranges(["b", "d"]):
        opened(catalog, collection_id, keys)
    for overlapping in (EVERY_KEY, KeyRange("a", "c"), KeyRange(after="zz"), KeyRange(through="a")):
        with pytest.raises(RunInProgress, match="at work"):
            opened(catalog, collection_id, overlapping)


def test_ranges_hold_every_key_exactly_once() -> None:
    cut = ranges(["b", "d/é", "\U0001f600"])
    for key in ("", "a", "b", "ba", "d/é", "d/éa", "z", "\U0001f600", "\U0001f601"):
        assert sum(key in part for part in cut) == 1
    assert not any(a.overlaps(b) for i, a in enumerate(cut) for b in cut[i + 1 :])
    with pytest.raises(ValueError, match="wrong order"):
        KeyRange("b", "a")


def test_a_range_lies_within_others_if_they_hold_all_its_keys() -> None:
    keys, ends = "abcdefg", [None, "b", "d", "f"]
    every = [KeyRange(a, t) for a in ends for t in ends if a is None or t is None or a < t]
    for others in (some for size in range(4) for some in combinations(every, size)):
        for one in every:
            held = all(any(key in other for other in others) for key in keys if key in one)
            assert one.within(others) is held


def test_of_many_that_start_at_once_one_works(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    together, outcomes = Barrier(8), list[str]()

    def start() -> None:
        together.wait()
        try:
            opened(catalog, collection_id)
            outcomes.append("working")
        except RunInProgress:
            outcomes.append("refused")

    threads = [Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["working"]
