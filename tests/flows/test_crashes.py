"""Whatever is killed and whenever: the next night leaves what an undisturbed one would have left, row for row."""

import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import Settings
from tests.crashes.left import left
from tests.crashes.nights import NIGHT, Place, Report, archive, changing_rounds, place, rounds
from tests.crashes.ray_nights import VICTIMS, ray_night


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("crashes"), installed / "weights", installed / "mlflow.db") as opened:
        yield opened


@pytest.fixture
def seed() -> int:
    """A seed of chance, printed so that a failure can be repeated."""
    chosen = secrets.randbelow(10**6)
    print(f"seed {chosen}")
    return chosen


def nothing_is_wrong(report: Report, kills: int) -> None:
    assert report.wrong == []
    assert len(report.meant) == kills
    assert report.hits >= kills // 2  # a moment may come after the end of a night that had less to do


@pytest.mark.slow
def test_nights_killed_at_random_moments_lose_and_repeat_nothing(somewhere: Place, seed: int) -> None:
    nothing_is_wrong(rounds(somewhere, seed, 3), 3)


@pytest.mark.slow
def test_a_crop_written_for_a_photo_that_is_gone_when_the_night_is_repeated_is_removed(somewhere: Place) -> None:
    photos = archive(somewhere.folder / "vanishing photos", 4)
    settings = somewhere.home("vanishing", photos)
    assert somewhere.forks.run(NIGHT, settings, at_file=7).killed  # three crops are written, and no row
    before = left(Settings(**settings))
    assert any(problem.startswith("orphaned objects") for problem in before.problems)
    for photo in [*photos.rglob("*.jpg")][:-1]:
        photo.unlink()
    ended = somewhere.forks.run(NIGHT, settings)
    assert ended.code == 0, ended.said
    assert left(Settings(**settings)).problems == []


@pytest.mark.long
def test_twenty_five_nights_killed_at_random_moments_lose_and_repeat_nothing(somewhere: Place, seed: int) -> None:
    nothing_is_wrong(rounds(somewhere, seed, 25), 25)


@pytest.mark.long
def test_photographs_that_come_change_and_go_between_kills_leave_no_orphan(somewhere: Place, seed: int) -> None:
    nothing_is_wrong(changing_rounds(somewhere, seed, 25), 25)


@pytest.mark.long
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_night_with_ray_survives_the_death_of_any_of_its_processes(somewhere: Place, seed: int, victim: str) -> None:
    photos = archive(somewhere.folder / f"photos for {victim}", 40)
    expected, _ = somewhere.undisturbed(f"undisturbed {victim}", photos)
    settings = somewhere.home(f"killed {victim}", photos)
    killed = ray_night(settings, victim, random.Random(seed))
    assert killed.survivors == []
    if victim == "worker":
        assert killed.code == 0, killed.said
    ended = somewhere.forks.run(NIGHT, settings)
    assert ended.code == 0, ended.said
    found = left(Settings(**settings))
    assert found.problems + found.differences(expected) == []
    assert "running" not in found.runs
