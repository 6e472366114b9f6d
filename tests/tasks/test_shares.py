"""How the actors of the stages share a cluster's processors."""

import pickle
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.catalog.images import Work
from tasks.photo_faces import PhotoFaces, unpack
from tasks.pipeline import PAGE, _FrontActor, _Shares
from tasks.prepare import CROP_BYTES, CROPS, GROUP, GROUP_BYTES, even_groups

STAGES = ["restore", "embed", "describe"]


@pytest.mark.parametrize("cpus", [1, 2, 8, 64])
def test_all_actors_fit_on_one_machine(cpus: int) -> None:
    share = _Shares.of(cpus, 0, STAGES, most=1000)
    assert share.wanted["CPU"] < cpus
    assert share.apart == []


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_all_actors_still_fit_when_one_of_several_nodes_dies(nodes: int) -> None:
    for gpus in (0, nodes):
        share = _Shares.of(4 * nodes, gpus, STAGES, most=1000, nodes=nodes)
        assert share.wanted["CPU"] < 4 * (nodes - 1)


def test_stages_that_share_gpus_have_actors_of_their_own() -> None:
    share = _Shares.of(16, 2, STAGES, most=1000)
    assert share.apart == STAGES
    assert set(share.actors.values()) == {2}
    assert share.wanted["GPU"] == 2


def test_where_there_is_no_processor_one_is_waited_for() -> None:
    assert 0 < _Shares.of(0, 0, STAGES, most=1000).wanted["CPU"] < 1


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16, 21, 40, 63, 200, 299])
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("size", "most"), [(CROP_BYTES, CROPS), (CROP_BYTES + 1, GROUP)])
def test_groups_of_a_small_job_keep_all_threads_busy_to_the_end(count: int, threads: int, size: int, most: int) -> None:
    for start in range(0, count, PAGE):
        page = [Work(n, f"{n}.jpg", "", size) for n in range(start, min(start + PAGE, count))]
        groups = even_groups(page, threads)
        assert [work for group in groups for work in group] == page
        sizes = {len(group) for group in groups}
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1
        assert len(groups) == len(page) or len(groups) % threads == 0


@given(st.lists(st.integers(1, 200 * 2**20), max_size=PAGE), st.sampled_from([1, 2, 4]))
def test_no_group_holds_more_bytes_than_it_may_but_a_single_large_file(sizes: list[int], threads: int) -> None:
    page = [Work(n, f"{n}.tif", "", size) for n, size in enumerate(sizes)]
    groups = even_groups(page, threads)
    assert list(chain.from_iterable(groups)) == page
    for group in groups:
        assert len(group) == 1 or 0 < sum(work.size for work in group) <= GROUP_BYTES


def test_an_actor_takes_the_next_photos_while_it_computes_and_loses_none_when_there_are_no_more() -> None:
    taken = threading.Event()

    def take(page: tuple[int, int]) -> Iterator[list[PhotoFaces]]:
        yield [PhotoFaces(page[0], "first.jpg", 1)]
        taken.set()
        yield [PhotoFaces(page[1], "last.jpg", 1)]
        raise ConnectionError("the store is gone")

    def compute(group: Sequence[PhotoFaces]) -> Sequence[PhotoFaces]:
        assert taken.wait(5)
        return group

    actor: Any = object.__new__(_FrontActor)
    actor.prepare, actor.stages = SimpleNamespace(take=take), [compute]
    *done, broken = actor({"first": np.array([3]), "last": np.array([7])})
    assert [unpack(data).image_id for batch in done for data in batch["photo"]] == [3, 7]
    assert isinstance(pickle.loads(broken["error"][0]), ConnectionError)
