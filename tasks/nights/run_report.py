"""The report of a run, for people and programs: one page of HTML, the same as JSON, and a summary in Markdown."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.catalog.queries.views import FailureView
from infra.html import templates
from infra.words import count

TEMPLATES = Path(__file__).parents[1] / "templates"
SHOWN = 100  # failures; 'visage failures' lists all
CONTACT_SHEET, HTML, JSON = "contact_sheet.png", "report.html", "report.json"  # files of a night's run in MLflow
REVEALING = (CONTACT_SHEET, HTML, JSON)  # they show faces or name photographs: an erasure removes them


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    `counts` is what the catalog keeps of it, `models` are NAME@VERSION by role, `failures` the first SHOWN.
    """

    collection: str
    place: str
    keys: str
    run: int
    started_at: datetime
    reported_at: datetime
    models: dict[str, str]
    counts: dict[str, Any]
    failures: tuple[FailureView, ...]

    @property
    def failed(self) -> int:
        """Images that this run could not process."""
        return sum(self.counts["failed"].values()) + self.counts["unlisted"]

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        counts = self.counts
        if not counts["processed"] and not self.failed:
            return "Nothing was new: nothing had to be processed"
        failed = f"{self.failed} could not be processed" if self.failed else "none failed"
        return f"{count(counts['processed'], 'image')} done, {count(counts['faces'], 'face')} found, {failed}"


def as_json(report: RunReport) -> str:
    """The report for programs."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False, default=str)


def as_html(report: RunReport, contact_sheet: bytes | None) -> str:
    """The report as one page without scripts or anything from elsewhere; `contact_sheet` is a PNG."""
    template = templates(TEMPLATES).get_template("run_report.html")
    sheet = None if contact_sheet is None else f"data:image/png;base64,{base64.b64encode(contact_sheet).decode()}"
    counts = report.counts
    return template.render(
        report=report,
        numbers=[(word.replace("_", " "), counts[word]) for word in NUMBERS],
        steps=_bars(counts["seconds"]),
        stages=_bars(counts["stage_seconds"]),
        sheet=sheet,
        more=max(report.failed - len(report.failures), 0),
    )


NUMBERS = ("new", "changed", "missing", "unchanged", "processed", "faces", "restored", "duplicates", "unlisted")


def _bars(seconds: dict[str, float]) -> list[tuple[str, float, float]]:
    """(name, seconds, percent of the longest)."""
    longest = max(seconds.values(), default=0) or 1
    return [(name, value, 100 * value / longest) for name, value in seconds.items()]


def as_markdown(report: RunReport) -> str:
    """A summary, as Prefect's page shows it: without any picture or key of a photograph."""
    counts = report.counts
    rows = [*((word, str(counts[word])) for word in NUMBERS), *_reasons(counts["failed"])]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    models = ", ".join(report.models.values())
    return (
        f"# {report.collection}, run {report.run}\n\n{report.headline} ({report.keys}).\n\n"
        f"| | |\n| --- | ---: |\n{table}\n\nModels: {models}\n"
    )


def _reasons(failed: dict[str, int]) -> Sequence[tuple[str, str]]:
    return [(f"failed, {reason}", str(count)) for reason, count in failed.items()]
