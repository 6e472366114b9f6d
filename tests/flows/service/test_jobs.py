"""Long work started from the page: how it gets on, why it failed, and how it is started again."""

import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from flows.service.client import Client
from flows.service.limits import Rate, Rates
from infra.catalog.database import Catalog
from infra.catalog.service import jobs
from infra.catalog.tables.schema import Collection, Embedding, ModelVersion, RunStatus
from infra.catalog.tables.service import JobStatus
from infra.catalog.tables.upgrades import Upgrade, UpgradeStatus
from infra.catalog.work.runs import close_run, open_run
from infra.settings import Settings
from tests.browser import barriers, complaints
from tests.serving import kill, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)


@pytest.fixture(scope="module")
def lame(own: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose models are not on this machine: every run fails, for a reason that a person can mend."""
    return own.model_copy(update={"weights": tmp_path_factory.mktemp("weights")})


@pytest.fixture(scope="module")
def address(lame: Settings) -> Iterator[str]:
    with serving(lame, rates=GENEROUS) as url:
        yield url


@pytest.fixture
def page(browser: "Browser", address: str) -> "Iterator[Page]":
    opened = browser.new_page(base_url=address)
    yield opened
    opened.close()


def test_a_run_that_fails_says_why_what_to_do_and_can_be_started_again(
    page: "Page", address: str, own: Settings
) -> None:
    said = complaints(page)
    page.goto("/nights")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("The run of archive is starting…").wait_for()
    failed = page.get_by_role("region", name="Run of archive failed")
    failed.wait_for(timeout=120_000)  # the page tells by itself
    assert "its weights are not in" in failed.inner_text()
    assert "visage models install" in failed.inner_text()
    assert barriers(page) == []
    with Client(address) as client:
        job = client.job(1)
        assert (job.status, job.kind, job.subject) == ("failed", "run", "archive")
        assert [seen.status for seen in client.watch_job(1)] == ["failed"]
    failed.get_by_role("button", name="Start again").click()
    page.get_by_text("The run of archive is starting…").wait_for()
    kill(own, 2)
    failed.wait_for(timeout=30_000)
    assert "ended from outside by SIGKILL: the machine may have run out of memory" in failed.inner_text()
    assert said == []


def test_a_failed_job_is_forgotten_once_a_night_was_good(page: "Page", own: Settings) -> None:
    catalog = Catalog(own.catalog_url)
    with catalog.write() as session:
        collection = session.scalars(select(Collection)).one()
        job = jobs.open_job(session, "run", collection.name, "ada")
        jobs.close_job(session, job.id, JobStatus.FAILED, None, "the disk was full\nfree some space")
    page.goto("/nights")
    failed = page.get_by_role("region", name="Run of archive failed")
    assert failed.count() == 1  # older ones are not repeated
    assert "free some space" in failed.locator(".key").inner_text()
    failed.get_by_text("All that it said").click()
    assert "the disk was full" in failed.inner_text()
    with catalog.write() as session:
        run = open_run(session, collection.id, "recipe")
        close_run(session, run.id, RunStatus.DONE, {})
    page.reload()
    assert failed.count() == 0
    catalog.close()


def test_the_end_of_a_job_that_has_outlived_its_service_is_told_to_whoever_watches(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.service.jobs.SWEEP_SECONDS", 0.1)
    catalog = Catalog(own.catalog_url)
    with subprocess.Popen(["sleep", "600"]) as process:
        with catalog.write() as session:
            job = jobs.open_job(session, "run", "archive", "ada")
            jobs.hand_over(session, job.id, process.pid)
        with serving(own, rates=GENEROUS) as url, Client(url, seconds=30) as client:
            watching = client.watch_job(job.id)
            assert next(watching).status == "running"
            process.kill()
            process.wait()
            assert [seen.status for seen in watching] == ["crashed"]
    catalog.close()


def test_a_backfill_is_watched_while_it_works(page: "Page", address: str, own: Settings) -> None:
    catalog = Catalog(own.catalog_url)
    with catalog.write() as session:
        former = session.scalars(select(ModelVersion.id).where(ModelVersion.serving)).one()
        vectors = dict(
            session.execute(select(Embedding.face_id, Embedding.vector).where(Embedding.model_version_id == former))
            .tuples()
            .all()
        )
        target = ModelVersion(
            name="next", version=2, role="embed", contract="next", contract_content={}, weights_sha256="0",
            dimension=128, licence="CC0",
        )  # fmt: skip
        session.add(target)
        session.flush()
        plan = Upgrade(
            target_id=target.id, former_id=former, asked="", status="backfilling", verdict="no worse",
            reason="as good on 200 pairs", source="crops", faces_per_second=0.01,
        )  # fmt: skip
        session.add(plan)
        session.flush()
        new, upgrade = target.id, plan.id
        job = jobs.open_job(session, "backfill", "the catalog", "ada")

    def embed(faces: list[int]) -> None:
        with catalog.write() as session:
            session.add_all(Embedding(face_id=f, model_version_id=new, vector=vectors[f]) for f in faces)

    page.goto("/models")
    count = page.locator("[data-count]")
    count.get_by_text("0 of 4 faces").wait_for()
    assert page.get_by_text("At work.").is_visible()
    assert page.get_by_role("button", name="Start the backfill").count() == 0
    assert "about 7 min of work left" in page.locator("[data-left]").inner_text()
    faces = sorted(vectors)
    embed(faces[:3])
    count.get_by_text("3 of 4 faces").wait_for()
    assert page.get_by_role("progressbar").get_attribute("value") == "3"
    with Client(address) as client:
        assert (client.upgrade().missing, client.upgrade().target) == (1, "next@2")
        seen = client.watch_upgrade()
        assert next(seen).missing == 1
        seen.close()  # type: ignore[attr-defined]
    with catalog.write() as session:
        jobs.close_job(session, job.id, JobStatus.FAILED, None, "no space left on device")
    failed = page.get_by_role("region", name="Backfill of the catalog failed")
    failed.wait_for()
    assert failed.get_by_role("button", name="Start again").is_visible()
    assert barriers(page) == []
    embed(faces[3:])
    with catalog.write() as session:
        session.execute(update(Upgrade).where(Upgrade.id == upgrade).values(status=UpgradeStatus.SWITCHED.value))
    page.get_by_role("heading", name="next@2 has taken over from").wait_for()
    assert failed.count() == 0
    catalog.close()
