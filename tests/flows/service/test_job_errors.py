"""What the book of jobs keeps: the words of a command that failed, and how one ended while the catalog was locked."""

import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from flows.service import jobs
from flows.service.jobs import MOST_ERROR_CHARACTERS, _why
from flows.service.state import Service
from infra.catalog.service import jobs as book
from infra.settings import Settings


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (1, '{"error": "no model is installed", "exit_code": 1}\n', "no model is installed"),
        (1, 'processing 3/5\n{"error": "a bug", "exit_code": 1}\n', "processing 3/5\na bug"),
        (1, "Fatal Python error\n", "Fatal Python error"),
        (1, "", "it ended with exit code 1"),
        (1, '{"error": "%s!"}' % ("x" * 2 * MOST_ERROR_CHARACTERS), "x" * (MOST_ERROR_CHARACTERS - 1) + "!"),
        (-9, "", "its process was ended from outside by SIGKILL: the machine may have run out of memory"),
    ],
)
def test_a_failed_job_says_why_in_the_words_of_its_command(code: int, said: str, why: str) -> None:
    assert _why(code, said) == why


@pytest.mark.parametrize("locked", ["when it starts", "when it ends"])
def test_a_job_is_told_to_its_end_though_the_catalog_is_locked_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    monkeypatch.setattr("flows.service.state.PATIENCE_SECONDS", 0.1)
    service = Service(Settings(home=tmp_path))
    other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None, check_same_thread=False)

    class Echo(subprocess.Popen[bytes]):
        """Prints an answer instead of doing the work, and has somebody else lock the catalog just then."""

        def __init__(self, _: list[str], **more: Any) -> None:
            super().__init__(["echo", '{"images": 3}'], **more)
            if locked == "when it starts":
                other.execute("BEGIN IMMEDIATE")

        def wait(self, timeout: float | None = None) -> int:
            code = super().wait(timeout)
            if locked == "when it ends":
                other.execute("BEGIN IMMEDIATE")
            return code

    monkeypatch.setattr(subprocess, "Popen", Echo)
    job = jobs.start(service, "run", "archive", "ada", ["run"])
    until = time.monotonic() + 60
    while not other.in_transaction and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)
    other.execute("ROLLBACK")
    while service.watched and time.monotonic() < until:
        time.sleep(0.05)
    with service.catalog.read() as session:
        done = book.job(session, job.id)
        assert done is not None
        assert (done.status, done.result, done.process_id != job.process_id) == ("done", {"images": 3}, True)
    other.close()
    service.close()
