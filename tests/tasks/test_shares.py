"""How the actors of the stages share a cluster's processors."""

import pytest

from tasks.pipeline import _Shares

STAGES = ["restore", "embed", "describe"]


@pytest.mark.parametrize("cpus", [1, 2, 8, 64])
def test_all_actors_fit_on_one_machine(cpus: int) -> None:
    share = _Shares.of(cpus, 0, STAGES, most=1000)
    assert share.cpus * sum(share.actors.values()) < cpus


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_all_actors_still_fit_when_one_of_several_nodes_dies(nodes: int) -> None:
    share = _Shares.of(4 * nodes, 0, STAGES, most=1000, nodes=nodes)
    assert share.cpus * sum(share.actors.values()) < 4 * (nodes - 1)
