"""One bad item never takes its neighbours along."""

import logging
import threading
import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.execution import guard
from tasks.execution.guard import guarded, halving, set_time_limit
from tasks.photo_faces import PhotoFaces

BATCHES = st.integers(0, 40).flatmap(
    lambda count: st.tuples(st.just(count), st.sets(st.integers(0, max(count - 1, 0))))
)


class Bad(Exception):
    """What a bad item raises; names it."""


@given(BATCHES)
def test_every_item_gets_one_result_in_its_place_and_only_bad_ones_are_given_up(batch: tuple[int, set[int]]) -> None:
    count, bad = batch

    def work(items: Sequence[int]) -> list[tuple[int, str]]:
        if spoilt := [item for item in items if item in bad]:
            raise Bad(spoilt)
        return [(item, "done") for item in items]

    results = halving(range(count), work, lambda item, error: (item, f"given up: {error}"))
    assert list(results) == [(i, f"given up: [{i}]" if i in bad else "done") for i in range(count)]


@given(st.integers(1, 200), st.data())
def test_one_bad_item_among_many_costs_few_calls(count: int, data: st.DataObject) -> None:
    bad, calls = data.draw(st.integers(0, count - 1)), 0

    def work(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if bad in items:
            raise Bad
        return items

    halving(range(count), work, lambda item, error: item)
    assert calls <= 2 * (count - 1).bit_length() + 1


def test_an_interruption_is_not_mistaken_for_a_bad_item() -> None:
    def work(items: Sequence[int]) -> Sequence[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halving(range(4), work, lambda item, error: item)


def photos(count: int) -> list[PhotoFaces]:
    return [PhotoFaces(i, f"{i}.jpg", 100) for i in range(count)]


def test_a_stage_touches_neither_failed_photos_nor_those_that_another_image_stands_for() -> None:
    failed = photos(1)[0].failed("decode", "truncated", "it breaks off", retryable=False)
    shared = PhotoFaces(1, "copy.jpg", 100, shared=True)
    good = PhotoFaces(2, "good.jpg", 100)
    seen: list[str] = []

    def work(batch: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        seen.extend(photo.key for photo in batch)
        return list(batch)

    results = guarded("embed", [failed, shared, good], work)
    assert seen == ["good.jpg"]
    assert results[:2] == [failed, shared]
    assert results[2].seconds.keys() == {"embed"}


def test_a_given_up_photo_says_which_why_and_that_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    def work(batch: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        if any(photo.image_id == 3 for photo in batch):
            raise FloatingPointError("not finite")
        return list(batch)

    with caplog.at_level(logging.WARNING, "visage"):
        results = guarded("restore", photos(5), work)
    assert [photo.failure is not None for photo in results] == [False, False, False, True, False]
    failure = results[3].failure
    assert failure is not None
    assert (failure.key, failure.stage, failure.reason, failure.retryable) == ("3.jpg", "restore", "error", True)
    assert "FloatingPointError in restore: not finite" in failure.message
    assert "FloatingPointError" in caplog.text  # with its trace, for whoever mends it


def test_the_time_of_a_stage_is_shared_out_among_its_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0])
    monkeypatch.setattr("tasks.execution.guard.time.perf_counter", lambda: next(times))
    results = guarded("embed", photos(3), list)
    assert [photo.seconds["embed"] for photo in results] == pytest.approx([1.0, 1.0, 1.0])


@pytest.fixture
def short_limit() -> Iterator[None]:
    set_time_limit(0.2)
    yield
    guard._clock.workers = None


@pytest.mark.usefixtures("short_limit")
def test_a_photo_that_a_stage_hangs_on_times_out_and_its_neighbours_do_not() -> None:
    def work(batch: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        if any(photo.key == "2.jpg" for photo in batch):
            threading.Event().wait()
        return list(batch)

    results = guarded("embed", photos(5), work)
    assert [photo.failure is None for photo in results] == [True, True, False, True, True]
    failure = results[2].failure
    assert failure is not None
    assert (failure.stage, failure.reason, failure.retryable) == ("embed", "timeout", False)
    assert "more than 0.2 s" in failure.message


def cannot_allocate(count: int) -> None:
    """Ask torch and Python for more memory than any machine has, by turns."""
    if count % 2:
        torch.empty(2**50, dtype=torch.uint8)
    bytearray(2**62)


def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits() -> None:
    sizes = []

    def work(batch: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        sizes.append(len(batch))
        if len(batch) > 2:
            cannot_allocate(len(sizes))
        return list(batch)

    assert all(photo.failure is None for photo in guarded("restore", photos(8), work))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_a_photo_too_large_for_the_memory_by_itself_fails_alone_for_that_reason() -> None:
    def work(batch: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        if any(photo.key == "3.jpg" for photo in batch):
            cannot_allocate(len(batch))
        return list(batch)

    failures = [photo.failure for photo in guarded("restore", photos(4), work)]
    assert failures[:3] == [None, None, None]
    assert failures[3] is not None
    assert (failures[3].reason, failures[3].retryable) == ("out_of_memory", False)


def test_what_filled_the_memory_is_let_go_before_the_halves_are_tried() -> None:
    left: list[weakref.ref[torch.Tensor]] = []

    def work(batch: Sequence[int]) -> Sequence[int]:
        assert all(tensor() is None for tensor in left)
        filling = torch.zeros(1000)
        left.append(weakref.ref(filling))
        if len(batch) > 1:
            raise MemoryError
        return batch

    assert list(halving(range(4), work, lambda item, error: -1)) == [0, 1, 2, 3]
