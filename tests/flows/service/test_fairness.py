"""The fairness report in the service: out of what an evaluation has stored, with what was refused, for people and programs."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flows.service.client import Client, ServiceProblem
from flows.service.limits import Rate, Rates
from flows.service.paging import cursor
from flows.service.problems import LARGEST_ID
from infra.settings import Settings
from infra.tracking import track
from tasks.evaluation.fairness import FairnessReport, Measure, MeasureInfo, errors, report, share
from tests.browser import barriers, complaints
from tests.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)
SIZES = {"young": 300, "old": 200, "very old": 12}


@pytest.fixture(scope="module")
def judged() -> FairnessReport:
    """A report in which the old are recognised less often, and the very old are too few to judge."""
    age = [group for group, size in SIZES.items() for _ in range(size)]
    light = ["dark" if n % 3 else "bright" for n in range(len(age))]
    right = np.array([group == "young" or n % 4 > 0 for n, group in enumerate(age)])
    groups = {"age_group": age, "light": light}
    found = MeasureInfo(name="faces found", of="pictures", higher_is_better=True, unit="")
    measures: list[Measure] = [
        share(found, groups, right),
        errors("yaw by x@1", "degrees", groups, np.where(right, 3.0, 9.0) + np.arange(len(age)) % 5),
    ]
    return report(measures, ["age_group", "light"], 30, ["Invented for a test."])


@pytest.fixture(scope="module")
def stored(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory, judged: FairnessReport) -> Settings:
    """A home whose MLflow keeps the report as evaluation, and one of another kind."""
    home = tmp_path_factory.mktemp("home")
    shutil.copyfile(empty_registry, home / "mlflow.db")
    settings = Settings(home=home)
    with track(settings.mlflow_uri, settings.artifacts_folder, "grouping", "other", {}) as run:
        run.metrics({"bcubed_f": 0.9})
    with track(settings.mlflow_uri, settings.artifacts_folder, "fairness", "x@1 on faces.tar", {}) as run:
        run.params({"columns": "age_group, light", "minimum": 30})
        run.metrics({"gap/faces found/age_group": 0.25})
        run.text(judged.model_dump_json(), "fairness.json")
    return settings


@pytest.fixture(scope="module")
def address(stored: Settings) -> Iterator[str]:
    with serving(stored, rates=GENEROUS) as url:
        yield url


def test_a_program_gets_the_report_as_it_was_stored_and_no_other_evaluation_has_one(
    address: str, judged: FairnessReport
) -> None:
    with Client(address) as client:
        assert [e.kind for e in client.evaluations(limit=1)] == ["fairness", "grouping"]
        assert [list(client.evaluations(after=cursor([n]))) for n in (-LARGEST_ID, 0)] == [[], []]
        assert len(list(client.evaluations(after=cursor([LARGEST_ID])))) == 2
        by_kind = {evaluation.kind: evaluation.id for evaluation in client.evaluations()}
        assert client.fairness(by_kind["fairness"]) == judged
        for run_id in (by_kind["grouping"], "0" * 32):
            with pytest.raises(ServiceProblem) as caught:
                client.fairness(run_id)
            assert (caught.value.status, caught.value.kind) == (404, "not-found")


def test_people_read_groups_with_counts_and_intervals_and_who_is_worst_off(browser: "Browser", address: str) -> None:
    page = browser.new_page(base_url=address)
    said = complaints(page)
    page.goto("/models")
    page.get_by_role("link", name="x@1 on faces.tar").click()
    page.wait_for_url("**/fairness/*")
    section = page.get_by_role("region", name="faces found")
    old = section.get_by_role("row", name="old 200", exact=False).first
    assert [part.strip() for part in old.inner_text().split("\t")][:4] == ["old", "200", "150", "75.0%"]
    assert "too few to judge" in section.get_by_role("row", name="very old 12", exact=False).first.inner_text()
    assert "Worst off: age group old" in section.inner_text()
    assert "6 intersections" in section.locator("summary").inner_text()
    drawn = [circle.bounding_box() for circle in section.locator("svg.interval circle").all()[:3]]
    everybody, old_ones, young_ones = (box["x"] for box in drawn if box is not None)
    assert old_ones < everybody < young_ones
    assert "degrees" in page.get_by_role("region", name="yaw by x@1: mean absolute error").inner_text()
    assert barriers(page) == []
    page.get_by_role("link", name="Numbers and files").click()
    page.get_by_role("link", name="Read the report").click()
    page.wait_for_url("**/fairness/*")
    assert said == []
    page.close()


def test_a_page_of_a_report_that_is_not_there_says_so(browser: "Browser", address: str) -> None:
    page = browser.new_page(base_url=address)
    page.goto("/fairness/" + "0" * 32)
    assert "no evaluation" in page.locator("main").inner_text()
    page.close()
