"""The whole way in a real browser with real processes: start a night, mend and retry, promote, backfill; the counts change.

Minutes: each step starts `visage` with its own Prefect server.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.service.client import Client
from flows.service.limits import Rate, Rates
from infra import prefect_server
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.settings import Settings
from infra.storage.base import LITTER
from tests.browser import complaints
from tests.reference import shared
from tests.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.long
GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)
PHOTOGRAPHS = ("obama2.jpg", "biden.jpg", "two_people.jpg", "t_obama_and_biden.jpg")
PATIENCE = 300_000  # ms, on a machine that does much else


@pytest.fixture
def archive_of_today(two_embedders: Path, tmp_path: Path) -> Iterator[Settings]:
    """A home with a collection of real photographs that no night has seen."""
    (tmp_path / "photos").mkdir()
    for name in PHOTOGRAPHS:
        shutil.copyfile(shared(f"data/photos/{name}"), tmp_path / "photos" / name)
    (tmp_path / "home").mkdir()
    shutil.copyfile(two_embedders / "mlflow.db", tmp_path / "home" / "mlflow.db")
    settings = Settings(
        home=tmp_path / "home", weights=two_embedders / "weights", engine="inline", restore_model="", describe_models=()
    )
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        collections.add(session, "archive", str(tmp_path / "photos"), [], list(LITTER), [])
    catalog.close()
    yield settings
    prefect_server.stop(tmp_path / "home")


def finished(page: "Page", run: int, words: str) -> None:
    """Wait at the nights until a run has ended so; the page tells by itself."""
    row = page.locator("tr", has=page.get_by_role("link", name=str(run), exact=True))
    row.get_by_text(words, exact=True).wait_for(timeout=PATIENCE)


def test_a_night_a_retry_and_an_upgrade_are_started_and_seen_through_on_the_page(
    browser: "Browser", archive_of_today: Settings, tmp_path: Path
) -> None:
    sizes = {name: (tmp_path / "photos" / name).stat().st_size for name in PHOTOGRAPHS}
    largest = max(sizes, key=lambda name: sizes[name])
    strict = archive_of_today.model_copy(update={"max_bytes": sizes[largest] - 1})
    said: list[str] = []
    for settings, steps in (
        (strict, [start_a_night]),
        (archive_of_today, [retry_with_a_higher_limit, upgrade, roll_back]),
    ):
        with serving(settings, rates=GENEROUS) as url, Client(url) as client:
            page = browser.new_page(base_url=url)
            page.on("dialog", lambda dialog: dialog.accept())
            heard = complaints(page)
            for step in steps:
                step(page, client, largest)
            said += heard
            page.close()
    assert [text for text in said if "409" not in text] == []  # the gate's refusal


def start_a_night(page: "Page", client: Client, largest: str) -> None:
    page.goto("/photographs")
    assert "visage run archive" in page.locator("pre").inner_text()
    page.goto("/nights")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("The run of archive is starting…").wait_for()
    page.get_by_role("heading", name="archive is at work").wait_for(timeout=PATIENCE)
    finished(page, 1, "done with failures")
    page.goto("/photographs")
    assert page.locator(".tile").count() == len(PHOTOGRAPHS) - 1
    assert [failure.key for failure in client.failures()] == [largest]
    assert len(list(client.faces())) >= 3


def retry_with_a_higher_limit(page: "Page", client: Client, largest: str) -> None:
    [failure], before = client.failures(), len(list(client.faces()))
    page.goto(f"/nights/1?reason={failure.reason}")
    page.get_by_role("button", name="Try these again").click()
    page.wait_for_url("**/nights")
    finished(page, 2, "done")
    page.goto("/photographs")
    assert page.locator(".tile").count() == len(PHOTOGRAPHS)
    assert list(client.failures()) == []
    assert len(list(client.faces())) > before
    assert [face for image in client.images(text=largest) for face in image.faces] != []


def upgrade(page: "Page", client: Client, largest: str) -> None:
    faces = len(list(client.faces()))
    page.goto("/models/lightcnn-9")
    page.get_by_role("button", name="Promote to champion").click()
    page.get_by_role("heading", name="The gate does not let this version pass").wait_for(timeout=PATIENCE)
    page.goto("/models/lightcnn-9")
    page.get_by_label("even if the gate refuses").check()
    page.get_by_role("button", name="Promote to champion").click()
    page.get_by_role("heading", name="lightcnn-9@1 is to take over from dlib-resnet@1").wait_for(timeout=PATIENCE)
    page.get_by_text(f"0 of {faces} faces").wait_for()
    assert client.upgrade().missing == faces
    page.get_by_role("button", name="Start the backfill").click()
    page.get_by_role("heading", name="lightcnn-9@1 has taken over from dlib-resnet@1").wait_for(timeout=PATIENCE)
    assert (client.upgrade().status, client.upgrade().missing) == ("switched", 0)
    assert client.neighbours(next(client.faces()).id).model == "lightcnn-9@1"


def roll_back(page: "Page", client: Client, largest: str) -> None:
    page.get_by_role("button", name="Roll back to dlib-resnet@1").click()
    page.get_by_role("heading", name="lightcnn-9@1 was rolled back to dlib-resnet@1").wait_for()
    assert client.neighbours(next(client.faces()).id).model == "dlib-resnet@1"
