"""Problems: somebody is told when a night was not good, or did not happen. Once per run, whoever looks."""

import json
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Collection, Run, Schedule
from infra.catalog.work.runs import close_dead_runs, give_back_to_report, take_to_report, unreported
from infra.settings import Settings
from tasks.nights.status import problem_of

PATIENCE = 30.0  # seconds that a command or a web server may take
NEWS = timedelta(days=1)  # what ended before that is history


class NotTold(RuntimeError):
    """The command or web server that is to hear of problems did not take it; it is told again later."""


def tell_problems(settings: Settings, catalog: Catalog) -> Iterator[str]:
    """Close runs that have died, and tell of every run that was not good; yields what has been told.

    Raises:
        NotTold: the run stays to be told of.
    """
    with catalog.write() as session:
        close_dead_runs(session)
        news = [_news(session, run, problem) for run in _ended(session) if (problem := problem_of(run))]
    for message in news:
        with catalog.write() as session:
            mine = take_to_report(session, message["run"])
        if not mine:
            continue
        try:
            tell(settings, message)
        except NotTold:
            with catalog.write() as session:
                give_back_to_report(session, message["run"])
            raise
        yield f"{message['collection']}: {message['problem']}"


def _ended(session: Session) -> list[Run]:
    return unreported(session, datetime.now(UTC) - NEWS)


def _news(session: Session, run: Run, problem: str) -> dict[str, Any]:
    """What is told of a run: counts and words, no key of a photograph and nothing of a face."""
    schedule = None if run.schedule_id is None else session.get(Schedule, run.schedule_id)
    return {
        "collection": session.get_one(Collection, run.collection_id).name,
        "run": run.id,
        "status": run.status,
        "problem": problem,
        "schedule": None if schedule is None else schedule.name,
        "due_at": None if run.slot is None else run.slot.isoformat(),
        "started_at": run.started_at.isoformat(),
        "finished_at": None if run.finished_at is None else run.finished_at.isoformat(),
        "processed": run.counts.get("processed", 0),
        "failed": run.counts.get("failed", {}),
    }


def tell(settings: Settings, message: dict[str, Any]) -> None:
    """Give a message, as JSON, to the command on its standard input and to the web server as a POST, if they are set.

    Raises:
        NotTold: if one of them does not take it.
    """
    body = json.dumps(message, ensure_ascii=False).encode()
    if settings.on_problem_command:
        try:
            command = shlex.split(settings.on_problem_command)
            subprocess.run(command, input=body, check=True, capture_output=True, timeout=PATIENCE)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or b""
            raise NotTold(
                f"VISAGE_ON_PROBLEM_COMMAND: {error} {said.decode(errors='replace')[-500:]}".strip()
            ) from error
    if settings.on_problem_webhook:
        try:
            request = urllib.request.Request(
                settings.on_problem_webhook, body, {"Content-Type": "application/json"}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=PATIENCE):
                pass
        except (OSError, ValueError) as error:
            raise NotTold(f"VISAGE_ON_PROBLEM_WEBHOOK {settings.on_problem_webhook}: {error}") from error
