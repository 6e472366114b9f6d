"""Rounds of killed nights: some deaths, then a night in peace, whose result must be that of a night that nobody disturbed."""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import night as steps
from flows.night import night
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.settings import Settings
from infra.storage.base import LITTER
from tests.crashes.left import Left, left
from tests.crashes.zygote import Ended, Zygote, zygote
from tests.portraits import jpeg, landscape, mirrored, pair, portrait

NIGHT = "tests.crashes.nights:one_night"
COLLECTION = "archive"
DIED = {"crashed", "failed"}


def one_night(**settings: Any) -> None:
    """The job of a victim: a whole night in this process."""
    with night(Settings(**settings), COLLECTION) as state:
        steps.discover_images(state)
        steps.process_images(state)
        steps.group_faces(state)
        steps.audit_catalog(state)
        steps.report_run(state)


def archive(folder: Path, count: int = 20) -> Path:
    """Small photographs: one face mostly, none or two sometimes; copies, and a broken file."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = landscape(120 + i) if i % 6 == 5 else pair(160) if i % 9 == 8 else [portrait, mirrored][i % 2](150 + i)
        (folder / f"{i:03}.jpg").write_bytes(jpeg(pixels))
    for name, original in (("copy.jpg", "000.jpg"), ("sub/copy.jpg", "003.jpg")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / original).read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (folder / "zz broken too.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    return folder


@dataclass
class Place:
    """Where the nights take place: a fresh home to copy, photographs, and the process that forks the victims."""

    folder: Path
    weights: Path
    registry: Path
    forks: Zygote
    options: dict[str, Any]

    def home(self, name: str, photos: Path, **options: Any) -> dict[str, Any]:
        """Make a home with the collection in it; returns its settings."""
        home = self.folder / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        shutil.copyfile(self.registry, home / "mlflow.db")
        settings = {"home": str(home), "weights": str(self.weights), "engine": "inline", **self.options, **options}
        catalog = Catalog(Settings(**settings).catalog_url)
        with catalog.write() as session:
            collections.add(session, COLLECTION, str(photos), [], list(LITTER), [])
        catalog.close()
        return settings

    def undisturbed(self, name: str, photos: Path, **options: Any) -> tuple[Left, Ended]:
        """What a night in peace leaves, and how it went."""
        settings = self.home(name, photos, **options)
        ended = self.forks.run(NIGHT, settings)
        assert ended.code == 0, ended.said
        return left(Settings(**settings)), ended


@contextmanager
def place(folder: Path, weights: Path, registry: Path, **options: Any) -> Iterator[Place]:
    """Open a place in a folder; `options` are settings of every night."""
    with zygote(folder, "tests.crashes.nights", "mlflow.tracking", "infra.tracking", "tests.crashes.upkeep") as forks:
        yield Place(folder, weights, registry, forks, {"restore_model": "", **options})


@dataclass
class Report:
    """What came of the kills: how each was meant, how many hit, and everything that was not as it must be."""

    meant: list[str] = field(default_factory=list)
    hits: int = 0
    wrong: list[str] = field(default_factory=list)


def rounds(place: Place, seed: int, kills: int, count: int = 20) -> Report:
    """Kill `kills` nights over `count` photographs that stay, a few in each fresh home, and compare each home."""
    rng, report, number = random.Random(seed), Report(), 0
    photos = archive(place.folder / f"photos {count}", count)
    expected, peace = place.undisturbed("undisturbed", photos)
    report.wrong += expected.problems
    while len(report.meant) < kills:
        number += 1
        settings, deaths = place.home(f"round {number}", photos), 0
        for _ in range(min(rng.randint(1, 5), kills - len(report.meant))):
            deaths += _kill(place, settings, rng, peace, report)
        _compare(place, settings, expected, deaths, report)
    return report


def changing_rounds(place: Place, seed: int, kills: int) -> Report:
    """The same while photographs come, change and go between the kills, and restoration is switched on and off.

    What is left must be what a night in peace makes of the collection as it is at the end.
    """
    rng, report, number = random.Random(seed), Report(), 0
    while len(report.meant) < kills:
        number += 1
        photos = archive(place.folder / f"photos {number}", 8)
        settings, deaths = place.home(f"round {number}", photos), 0
        _, peace = place.undisturbed(f"undisturbed {number}", photos)
        for _ in range(min(rng.randint(2, 6), kills - len(report.meant))):
            settings["restore_model"] = rng.choice(["", "real-esrgan-x4plus"])
            deaths += _kill(place, settings, rng, peace, report)
            _change(photos, rng)
        expected, _ = place.undisturbed(f"after {number}", photos, restore_model=settings["restore_model"])
        _compare(place, settings, expected, deaths, report)
    return report


def _kill(place: Place, settings: dict[str, Any], rng: random.Random, peace: Ended, report: Report) -> int:
    """Send one night to its death, at a moment of which one in `peace` has many; whether it died."""
    moment: dict[str, Any] = rng.choice(
        [
            {"at_event": rng.randint(1, peace.events)},
            {"at_file": rng.randint(1, peace.files)},
            {"after": round(rng.uniform(0.02, peace.seconds), 3)},
        ]
    )
    ended = place.forks.run(NIGHT, settings, **moment)
    report.meant.append(str(moment))
    report.hits += ended.killed
    if not ended.killed and ended.code != 0:
        report.wrong.append(f"{report.meant[-1]}: ended with {ended.code}: {ended.said}")
    return int(ended.killed)


def _change(photos: Path, rng: random.Random) -> None:
    """Take a photograph away, replace one, or add one that is so small that its face is restored."""
    name = rng.choice(sorted(path.name for path in photos.glob("*.jpg")))
    match rng.choice(["remove", "replace", "add"]):
        case "remove":
            (photos / name).unlink()
        case "replace":
            (photos / name).write_bytes(jpeg(portrait(rng.randint(180, 400))))
        case _:
            (photos / f"small {rng.randrange(10**6)}.jpg").write_bytes(jpeg(portrait(rng.randint(200, 280))))


def _compare(place: Place, settings: dict[str, Any], expected: Left, deaths: int, report: Report) -> None:
    ended = place.forks.run(NIGHT, settings)
    found = left(Settings(**settings))
    wrong = found.problems + found.differences(expected)
    if ended.code != 0:
        wrong.append(f"the night after the kills ended with {ended.code}: {ended.said}")
    if found.runs.count("crashed") > deaths or found.runs[-1] != "done_with_failures" or "running" in found.runs:
        wrong.append(f"{deaths} deaths, but the runs are {found.runs}")
    report.wrong += [f"after {report.meant[-6:]}: {problem}" for problem in wrong]
    shutil.rmtree(settings["home"])
