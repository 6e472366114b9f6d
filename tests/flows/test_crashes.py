"""Whatever is killed and whenever: the next night leaves what an undisturbed one would have left, row for row."""

import random
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from infra.catalog.database import MIGRATIONS, Catalog, create_catalog_engine
from infra.settings import Settings
from models import table
from tests.crashes.left import left
from tests.crashes.nights import NIGHT, Place, Report, archive, changing_rounds, place, rounds
from tests.crashes.ray_nights import VICTIMS, deadly_night, ray_night
from tests.crashes.upkeep import INSTALLATION, INSTALLED_WHOLE, MIGRATION, clear, kill_each
from tests.portraits import jpeg, portrait
from tests.tasks.tiny_models import tiny_table


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
    assert report.hits >= kills // 5  # a third of the moments come after the end of a night that had less to do


@pytest.mark.slow
def test_nights_killed_at_random_moments_lose_and_repeat_nothing(somewhere: Place, seed: int) -> None:
    nothing_is_wrong(rounds(somewhere, seed, 5, count=8), 5)


@pytest.mark.long
def test_fifty_nights_killed_at_random_moments_lose_and_repeat_nothing(somewhere: Place, seed: int) -> None:
    nothing_is_wrong(rounds(somewhere, seed, 50), 50)


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


@pytest.mark.long
def test_a_photo_that_kills_whoever_touches_it_is_found_and_its_neighbours_are_done(
    somewhere: Place, tmp_path: Path
) -> None:
    photos = archive(somewhere.folder / "deadly photos", 10)
    for name in ("002.jpg", "copy of it.jpg"):
        (photos / name).write_bytes(jpeg(portrait(210)) + b"deadly")
    settings = somewhere.home("deadly", photos, engine="auto", cpus=2)
    codes = [deadly_night(settings, tmp_path / "path") for _ in range(3)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    found = left(Settings(**settings))
    assert found.problems == []
    assert found.runs == ["crashed", "crashed", "done_with_failures"]
    failed = {key: reason for key, _, reason, _, _ in found.exact["failures"]}
    assert failed.keys() == {"002.jpg", "copy of it.jpg", "broken.jpg", "zz broken too.jpg"}
    assert failed["002.jpg"] == failed["copy of it.jpg"] == "worker_died"


@pytest.fixture(scope="module")
def first_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a catalog with the first schema and a collection in it."""
    path = tmp_path_factory.mktemp("first schema") / "catalog.db"
    engine = create_catalog_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO collection (name, uri, include, exclude, sensitive_attributes, created_at) "
                "VALUES ('archive', '/photos', '[]', '[]', '[]', '2026-01-01 00:00:00')"
            )
        )
    engine.dispose()
    return path


def schema(path: Path) -> set[str]:
    """What a catalog consists of, once it is open and up to date."""
    catalog = Catalog(f"sqlite:///{path}")
    with catalog.read() as session:
        assert session.scalar(text("SELECT name FROM collection")) == "archive"
        found = {" ".join(row) for row in session.execute(text("SELECT type, name, tbl_name FROM sqlite_master"))}
        for table in [name.split()[1] for name in found if name.startswith("table ")]:
            columns = session.execute(text(f"PRAGMA table_info({table})")).tuples()
            found |= {f"{table}.{name} {kind} {required} {key}" for _, name, kind, required, _, key in columns}
    catalog.close()
    return found


def migrations_survive(somewhere: Place, first_schema: Path, tmp_path: Path, seed: int, kills: int) -> None:
    database = tmp_path / "catalog.db"

    def begin() -> None:
        for path in tmp_path.glob("catalog.db*"):
            path.unlink()
        shutil.copyfile(first_schema, database)

    begin()
    expected = schema(database)

    def whole(moment: str) -> None:
        assert schema(database) == expected, moment

    url = {"url": f"sqlite:///{database}"}
    assert kill_each(somewhere.forks, MIGRATION, url, random.Random(seed), kills, begin, whole) > 0


@pytest.mark.slow
def test_a_killed_migration_leaves_a_catalog_that_is_old_or_new(
    somewhere: Place, first_schema: Path, tmp_path: Path, seed: int
) -> None:
    migrations_survive(somewhere, first_schema, tmp_path, seed, 2)


@pytest.mark.long
def test_twenty_five_killed_migrations_leave_a_catalog_that_is_old_or_new(
    somewhere: Place, first_schema: Path, tmp_path: Path, seed: int
) -> None:
    migrations_survive(somewhere, first_schema, tmp_path, seed, 25)


@pytest.mark.long
def test_killed_installations_leave_nothing_half_installed(
    somewhere: Place, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(table, "MODELS", tiny_table(tmp_path / "wheels").models)
    folder = {"folder": str(tmp_path)}

    def whole(moment: str) -> None:
        ended = somewhere.forks.run(INSTALLED_WHOLE, folder)
        assert ended.code == 0, f"{moment}: {ended.said}"

    forks, rng = somewhere.forks, random.Random(seed)
    assert kill_each(forks, INSTALLATION, folder, rng, 10, lambda: clear(tmp_path), whole) > 0
