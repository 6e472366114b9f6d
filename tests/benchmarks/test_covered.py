"""Masks on real faces are noticed, on people of whom the statistics know nothing."""

from pathlib import Path

import pytest

from infra.settings import Settings
from tests.benchmarks.covered import finder, judged, names_of_half

FEW = 40


@pytest.mark.parametrize(("kind", "least", "most"), [(None, 0, 0.1), ("surgical mask", 0.9, 1), ("scarf", 0.8, 1)])
def test_masks_on_strangers_are_noticed_and_bare_faces_are_not_taken_for_masked(
    weights_dir: Path, tracking_uri: str, kind: str | None, least: float, most: float
) -> None:
    names = names_of_half(1)
    find = finder(Settings(weights=weights_dir, tracking_uri=tracking_uri))
    rows = judged(find, names[:: len(names) // FEW], kind)
    assert len(rows.covered) >= FEW / 2  # the detector finds most of them
    assert least <= (rows.covered >= 0.2).mean() <= most
