"""Several threads work through items, and whoever reads their results cannot tell."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from structlog.contextvars import bound_contextvars, get_contextvars

from tasks.execution.side_by_side import side_by_side, torch_threads


def test_results_come_in_the_order_of_the_items_whoever_is_done_first() -> None:
    def slow_if_even(item: int) -> int:
        time.sleep(0.03 * (item % 2 == 0))
        return item

    assert list(side_by_side(range(9), slow_if_even, threads=3)) == list(range(9))


def test_two_items_are_in_hand_at_the_same_time() -> None:
    both = threading.Barrier(2)
    results = side_by_side(range(6), lambda _: both.wait(timeout=5), threads=2)  # broken if one waits alone
    assert sorted(results) == [0, 0, 0, 1, 1, 1]


def test_no_more_than_one_item_waits_beyond_those_in_hand() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            asked.append(item)
            yield item

    results = side_by_side(items(), lambda item: item, threads=2)
    assert next(results) == 0
    assert asked == [0, 1, 2]
    results.close()


def test_an_error_ends_it_and_nothing_begins_after_it() -> None:
    begun: list[int] = []

    def fails_at_three(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ConnectionError("gone")
        return item

    results = side_by_side(iter(range(100)), fails_at_three, threads=2)
    with pytest.raises(ConnectionError, match="gone"):
        list(results)
    last = len(begun)
    time.sleep(0.1)
    assert len(begun) == last < 10


def test_an_error_of_the_items_loses_no_result_of_those_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ConnectionError("gone")

    seen: list[int] = []
    with pytest.raises(ConnectionError, match="gone"):
        seen.extend(side_by_side(items(), lambda item: item, threads=2))
    assert seen == [0, 1, 2, 3, 4]


def test_torch_has_that_many_threads_in_each_and_as_many_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    for count in (3, 1):
        with torch_threads(count):
            assert list(side_by_side(range(4), lambda _: torch.get_num_threads(), threads=2)) == [count] * 4
    assert torch.get_num_threads() == before


def test_what_is_logged_in_a_thread_still_names_the_run() -> None:
    with bound_contextvars(run=7):
        assert list(side_by_side([0, 1], lambda _: get_contextvars()["run"], threads=2)) == [7, 7]
