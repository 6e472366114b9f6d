"""A network that replays records is the network. The records are made up here; tests.test_gpu makes real ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from models.attributes.mini_xception import MINI_XCEPTION
from tasks.execution import cuda_graph
from tasks.execution.cuda_graph import Recorded, recorded


def network(batch: Tensor, *options: str) -> Tensor | dict[str, Tensor]:
    return {option: batch * len(option) for option in options} if options else batch * 2


@pytest.fixture(autouse=True)
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records that write their output always to the same place, as CUDA's do; returns a list with an entry for each replay."""
    done: list[int] = []

    def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        output = work()

        def replay() -> None:
            done.append(1)
            for old, new in zip(*(o.values() if isinstance(o, dict) else [o] for o in (output, work())), strict=True):
                old.copy_(new)

        return replay, output

    monkeypatch.setattr(cuda_graph, "record", record)
    return done


def test_full_batches_are_replayed_and_the_rest_computed_to_the_same_result(replays: list[int]) -> None:
    faces = Recorded(network, torch.zeros(4, 3))
    for count in (4, 3, 4, 5, 0):
        batch = torch.rand(count, 3)
        assert torch.equal(faces(batch), batch * 2)
    assert len(replays) == 2


def test_a_result_stays_when_the_next_batch_is_replayed() -> None:
    faces = Recorded(network, torch.zeros(4, 3))
    first, second = torch.rand(4, 3), torch.rand(4, 3)
    results = faces(first), faces(second)
    assert torch.equal(results[0], first * 2)
    assert torch.equal(results[1], second * 2)


def test_what_is_asked_otherwise_than_recorded_is_computed(replays: list[int]) -> None:
    faces = Recorded(network, torch.zeros(4, 3), "age", "expression")
    batch = torch.rand(4, 3)
    replayed, other, computed = (
        faces(batch, "age", "expression"),
        faces(batch + 1, "age", "expression"),
        faces(batch, "age"),
    )
    assert torch.equal(replayed["expression"], batch * 10)
    assert torch.equal(other["expression"], (batch + 1) * 10)
    assert computed.keys() == {"age"}
    assert len(replays) == 2


def test_threads_do_not_mix_their_batches_up(replays: list[int]) -> None:
    faces = Recorded(network, torch.zeros(4, 3))
    batches = [torch.full((4, 3), float(k)) for k in range(200)]
    with ThreadPoolExecutor(4) as threads:
        for batch, result in zip(batches, threads.map(faces, batches), strict=True):
            assert torch.equal(result, batch * 2)
    assert len(replays) == 200


def test_on_a_cpu_a_network_is_left_as_it_is() -> None:
    assert recorded(network, MINI_XCEPTION, 4, "cpu") is network
