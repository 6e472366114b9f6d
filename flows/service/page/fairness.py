"""The fairness report as a page: every measure of every group with its interval, drawn to one scale, and the widest gaps."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from flows.service.access import Here
from flows.service.api.evaluations import RunId, fairness_report
from flows.service.page.render import Visitor, page
from tasks.evaluation.fairness import Cell, FairnessReport, Gap, MeasureInfo

router = APIRouter(include_in_schema=False)
ROOM = 4.0  # percent of a plot's width beside its outermost intervals


@dataclass(frozen=True)
class Row:
    """One group of a measure. `low`, `at`, `high`: where its interval is drawn, in percent; None where it is too small."""

    cell: Cell
    low: float | None = None
    at: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Chart:
    """One measure: everybody, the groups of each column, and those of every two columns; `everybody` in percent too."""

    info: MeasureInfo
    rows: tuple[Row, ...]
    by_column: dict[str, tuple[Row, ...]]
    intersections: dict[str, tuple[Row, ...]]
    everybody: float | None
    gap: Gap | None


@router.get("/fairness/{run_id}")
def report(request: Request, service: Here, who: Visitor, run_id: RunId) -> Response:
    """One report, out of what the evaluation has stored."""
    evaluation = service.evaluations.show(run_id)
    stored = fairness_report(service, run_id)
    return page(
        request,
        who,
        "fairness.html",
        evaluation=evaluation,
        report=stored,
        gaps=_widest_first(stored),
        charts=[chart(stored, info) for info in stored.measures],
        amount=amount,
        refused=sum(cell.value is None for cell in stored.cells),
        infos={info.name: info for info in stored.measures},
    )


def amount(value: float, info: MeasureInfo) -> str:
    """A measure's value as people write it: a share in percent, anything else with its unit."""
    return f"{value:.2f}{info.unit}" if info.unit else f"{100 * value:.1f}%"


def chart(stored: FairnessReport, info: MeasureInfo) -> Chart:
    """Lay one measure out: all of its intervals on one scale."""
    cells = [cell for cell in stored.cells if cell.measure == info.name]
    rows = _drawn(cells)
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(row.cell.groups), []).append(row)
    return Chart(
        info,
        tuple(grouped.get((), ())),
        {by[0]: tuple(found) for by, found in grouped.items() if len(by) == 1},
        {" and ".join(by): tuple(found) for by, found in grouped.items() if len(by) > 1},
        next((row.at for row in grouped.get((), ())), None),
        next((gap for gap in _widest_first(stored) if gap.measure == info.name and len(gap.by) == 1), None),
    )


def _drawn(cells: Sequence[Cell]) -> list[Row]:
    bounds = [bound for cell in cells for bound in (cell.low, cell.value, cell.high) if bound is not None]
    if not bounds:
        return [Row(cell) for cell in cells]
    least, span = min(bounds), max(max(bounds) - min(bounds), 1e-9)

    def percent(value: float | None) -> float | None:
        return None if value is None else ROOM + (100 - 2 * ROOM) * (value - least) / span

    return [Row(cell, percent(cell.low), percent(cell.value), percent(cell.high)) for cell in cells]


def _widest_first(stored: FairnessReport) -> list[Gap]:
    """Gaps whose interval does not hold 0 before those that chance may have made, and shares before amounts with a unit."""
    units = {info.name: info.unit for info in stored.measures}
    return sorted(stored.gaps, key=lambda gap: (not gap.clear, bool(units[gap.measure]), -gap.difference))
