"""Whether last night was good, who is told when it was not, and what Prometheus reads of it."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.images import Listed, put_pending
from infra.catalog.tables.schema import Image, Run, RunStatus, Schedule
from infra.catalog.work.failures import FailureRecord, record_failures
from infra.catalog.work.key_range import EVERY_KEY, KeyRange
from infra.catalog.work.runs import close_run, enter_unopened, open_run
from infra.metrics import render, serve_metrics
from infra.settings import PREFIX, Settings
from tasks.nights.problems import NotTold, tell_problems
from tasks.nights.schedules import add_schedule
from tasks.nights.status import CollectionStatus, status
from tests.command import visage

GOOD = {"processed": 5, "failed": {}, "unlisted": 0}
BAD = {"processed": 5, "failed": {"decode: truncated": 2}, "unlisted": 0}


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    opened = Catalog(catalog_url)
    with opened.write() as session:
        collections.add(session, "archive", "/photos", [], [], [])
    yield opened
    opened.close()


def ran(
    catalog: Catalog, how: RunStatus = RunStatus.DONE, counts: dict[str, Any] = GOOD, keys: KeyRange = EVERY_KEY
) -> int:
    with catalog.write() as session:
        run_id = open_run(session, 1, "recipe", keys).id
        close_run(session, run_id, how, counts, "it broke" if how is RunStatus.FAILED else None)
    return run_id


def judged(catalog: Catalog, at: datetime | None = None) -> CollectionStatus:
    with catalog.read() as session:
        found = status(session, at)
    [archive] = found.collections
    assert found.good is not bool(archive.problems)
    return archive


def test_a_night_that_did_all_was_good_and_so_is_none_at_all(catalog: Catalog) -> None:
    assert judged(catalog).problems == ()
    ran(catalog)
    assert judged(catalog).problems == ()


def test_new_failures_are_a_problem_and_old_ones_are_not(catalog: Catalog) -> None:
    ran(catalog, RunStatus.DONE_WITH_FAILURES, BAD)
    assert judged(catalog).problems == ("run 1 left 2 images unprocessed",)
    ran(catalog, RunStatus.DONE_WITH_FAILURES, GOOD)
    assert judged(catalog).problems == ()


def test_a_run_that_failed_is_a_problem_until_one_is_good(catalog: Catalog) -> None:
    ran(catalog, RunStatus.FAILED)
    assert judged(catalog).problems == ("run 1 failed: it broke",)
    ran(catalog)
    assert judged(catalog).problems == ()


def test_of_a_shared_collection_every_part_counts(catalog: Catalog) -> None:
    left, right = KeyRange(None, "m"), KeyRange("m", None)
    ran(catalog, RunStatus.FAILED)
    ran(catalog, RunStatus.FAILED, keys=left)
    assert len(judged(catalog).problems) == 2  # the whole, and a part since
    ran(catalog, keys=right)
    assert judged(catalog).problems == ("run 2 failed: it broke",)
    ran(catalog)
    ran(catalog, keys=left)
    ran(catalog, RunStatus.FAILED, keys=right)
    assert judged(catalog).problems == ("run 6 failed: it broke",)


def test_a_part_that_failed_is_a_problem_until_all_its_keys_are_done_however_they_are_cut_then(
    catalog: Catalog,
) -> None:
    ran(catalog, keys=KeyRange(None, "m"))
    ran(catalog, RunStatus.FAILED, keys=KeyRange("m", None))
    ran(catalog, keys=KeyRange(None, "g"))
    ran(catalog, keys=KeyRange("g", "p"))
    assert judged(catalog).problems == ("run 2 failed: it broke",)
    ran(catalog, keys=KeyRange("p", None))
    assert judged(catalog).problems == ()


def test_a_skipped_night_is_a_problem_until_the_run_that_was_in_its_way_ends_well(catalog: Catalog) -> None:
    with catalog.write() as session:
        at_work = open_run(session, 1, "recipe").id
        enter_unopened(session, 1, RunStatus.SKIPPED, "run 1 is at work")
    found = judged(catalog)
    assert found.problems == ("run 2 was skipped: run 1 is at work",)
    assert found.at_work is not None
    with catalog.write() as session:
        close_run(session, at_work, RunStatus.DONE, GOOD)
    assert judged(catalog).problems == ()


def test_a_night_that_did_not_happen_is_a_problem(catalog: Catalog) -> None:
    add_schedule(catalog, "nightly", "archive", "0 2 * * *")
    with catalog.write() as session:
        session.execute(update(Schedule).values(active_since=datetime(2026, 6, 1, 12, tzinfo=UTC)))
    two = datetime(2026, 6, 2, 2, tzinfo=UTC)
    assert judged(catalog, two + timedelta(minutes=10)).problems == ()
    assert judged(catalog, two + timedelta(minutes=20)).problems == (
        "nightly did not run: it was due at 2026-06-02 02:00 UTC",
    )


def test_a_run_whose_process_is_gone_is_a_problem_at_once(catalog: Catalog) -> None:
    with catalog.write() as session:
        run = open_run(session, 1, "recipe")
        run.process_started = 0.0
    assert "run 1 died" in judged(catalog).problems[0]


def test_what_waits_is_counted_with_the_age_of_the_oldest(catalog: Catalog) -> None:
    with catalog.write() as session:
        put_pending(session, 1, [Listed(key, "1", 10, datetime.now(UTC)) for key in ("a.jpg", "b.jpg")])
        long_ago = datetime.now(UTC) - timedelta(days=3)
        session.execute(update(Image).where(Image.key == "a.jpg").values(pending_since=long_ago))
    found = judged(catalog)
    assert found.pending == 2
    assert found.oldest_pending is not None
    assert abs(found.oldest_pending - long_ago) < timedelta(seconds=1)


def test_the_command_says_it_by_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path))
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    with catalog.write() as session:
        collections.add(session, "archive", "/photos", [], [], [])
    ran(catalog)
    good = visage("status")
    assert (good.code, "All is well" in good.out) == (0, True)
    ran(catalog, RunStatus.FAILED)
    bad = visage("status")
    assert (bad.code, "archive: run 2 failed: it broke" in bad.out) == (3, True)
    told = visage("status", "--json").json
    assert (told["good"], told["collections"][0]["problems"]) == (False, ["run 2 failed: it broke"])
    visage("metrics", "--out", tmp_path / "visage.prom")
    assert 'visage_last_run_status{collection="archive",status="failed"} 1.0' in (tmp_path / "visage.prom").read_text()
    catalog.close()


class Listener(HTTPServer):
    """A web server that keeps what it is told, or refuses it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.refusing = False
        super().__init__(("127.0.0.1", 0), Answer)
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/problems"


class Answer(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.refusing:
            self.server.told.append(json.loads(body))
        self.send_response(503 if self.server.refusing else 204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    yield server
    server.shutdown()
    server.server_close()


def test_a_bad_night_is_told_once_and_a_good_one_never(catalog: Catalog, listener: Listener) -> None:
    settings = Settings(on_problem_webhook=listener.url)
    ran(catalog)
    ran(catalog, RunStatus.DONE_WITH_FAILURES, BAD)
    assert list(tell_problems(settings, catalog)) == ["archive: run 2 left 2 images unprocessed"]
    assert list(tell_problems(settings, catalog)) == []
    [told] = listener.told
    assert (told["collection"], told["run"], told["status"]) == ("archive", 2, "done_with_failures")
    assert told["failed"] == {"decode: truncated": 2}


def test_a_night_that_died_or_did_not_happen_is_told(catalog: Catalog, listener: Listener) -> None:
    with catalog.write() as session:
        open_run(session, 1, "recipe").process_started = 0.0
        enter_unopened(session, 1, RunStatus.MISSED, "it did not run")
    assert len(list(tell_problems(Settings(on_problem_webhook=listener.url), catalog))) == 2
    assert [message["status"] for message in listener.told] == ["crashed", "missed"]


def test_what_could_not_be_told_is_told_later(catalog: Catalog, listener: Listener) -> None:
    settings = Settings(on_problem_webhook=listener.url)
    ran(catalog, RunStatus.FAILED)
    listener.refusing = True
    with pytest.raises(NotTold, match="503"):
        list(tell_problems(settings, catalog))
    listener.refusing = False
    assert len(list(tell_problems(settings, catalog))) == 1
    assert len(listener.told) == 1


def test_a_command_hears_of_it_on_its_standard_input(catalog: Catalog, tmp_path: Path) -> None:
    heard = tmp_path / "heard it.json"
    keep = (
        f"{sys.executable} -c 'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())' '{heard}'"
    )
    ran(catalog, RunStatus.FAILED)
    list(tell_problems(Settings(on_problem_command=keep), catalog))
    assert json.loads(heard.read_text())["problem"] == "run 1 failed: it broke"
    ran(catalog, RunStatus.FAILED)
    with pytest.raises(NotTold, match="no-such-command"):
        list(tell_problems(Settings(on_problem_command="no-such-command"), catalog))


def test_history_is_not_news(catalog: Catalog, listener: Listener) -> None:
    ran(catalog, RunStatus.FAILED)
    with catalog.write() as session:
        session.execute(update(Run).values(finished_at=datetime.now(UTC) - timedelta(days=2)))
    assert list(tell_problems(Settings(on_problem_webhook=listener.url), catalog)) == []


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_tell_images_failures_queue_and_the_last_run(catalog: Catalog) -> None:
    counts = {
        **GOOD,
        "seconds": {"process": 12.5},
        "stage_seconds": {"detect": 7.5},
        "audited": {"images": {"done": 5, "missing": 1}, "faces": 9},
    }
    with catalog.write() as session:
        put_pending(session, 1, [Listed(key, "1", 10, datetime.now(UTC)) for key in ("a.jpg", "b.jpg", "c.jpg")])
        session.execute(update(Image).values(pending_since=datetime.now(UTC) - timedelta(hours=1)))
        run_id = open_run(session, 1, "recipe").id
        broken = FailureRecord("a.jpg", "decode", "truncated", "cut off", retryable=False, image_id=1)
        record_failures(session, run_id, 1, [broken])
        close_run(session, run_id, RunStatus.DONE, counts)
    found = samples(render(catalog))
    assert found["visage_images", "archive", "done"] == 5
    assert found["visage_images", "archive", "missing"] == 1
    assert found["visage_images", "archive", "pending"] == found["visage_queue_images", "archive"] == 2
    assert found["visage_images", "archive", "failed"] == 1
    assert found["visage_failures", "archive", "truncated", "decode"] == 1
    assert found["visage_faces", "archive"] == 9
    assert found["visage_oldest_pending_seconds", "archive"] == pytest.approx(3600, abs=60)
    assert found["visage_last_run_step_seconds", "archive", "process"] == 12.5
    assert found["visage_last_run_stage_seconds", "archive", "detect"] == 7.5
    assert found["visage_last_run_status", "archive", "done"] == 1
    assert found["visage_last_run_end_timestamp_seconds", "archive"] == pytest.approx(
        datetime.now(UTC).timestamp(), abs=60
    )


def test_prometheus_reads_them_over_http(catalog: Catalog) -> None:
    server = serve_metrics(catalog, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert ("visage_queue_images", "archive") in samples(answer.read())
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/")
    finally:
        server.shutdown()
        server.server_close()


def test_gpu_memory_is_read_from_the_drivers_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.metrics import gpu_memory  # noqa: PLC0415

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 1024, 81559'\necho '1, [N/A], [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(gpu_memory()) == [("0", 2**30, 81559 * 2**20)]
