"""The fairness report as a picture: every group's measure with its interval, beside everybody's."""

from typing import TYPE_CHECKING

from tasks.evaluation.fairness import Cell, FairnessReport, MeasureInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW, TOP = 0.26, 0.9  # inches
COLORS = ("#1f4e79", "#c0504d", "#4f7f3f", "#8064a2", "#b8860b", "#2a8c8c")


def plot_measure(report: FairnessReport, info: MeasureInfo) -> "Figure":
    """Draw one measure of all groups by one column; a group that is too small to judge stays empty and says so."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a third of a second that no night should pay

    cells = [cell for cell in report.cells if cell.measure == info.name and len(cell.groups) <= 1]
    figure = Figure(figsize=(8, TOP + ROW * (len(cells) + 1)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    everybody = next((cell for cell in cells if not cell.groups), None)
    if everybody is not None and everybody.value is not None:
        axes.axvline(everybody.value, color="grey", linewidth=1, linestyle="--")
    for place, cell in enumerate(cells):
        column = next(iter(cell.groups), "")
        color = COLORS[report.columns.index(column) % len(COLORS)] if column else "black"
        _draw(axes, cell, place, color)
    axes.set_yticks(range(len(cells)), [f"{cell.name} ({cell.of:,})" for cell in cells], fontsize=8)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    values = [bound for cell in cells for bound in (cell.low, cell.high) if bound is not None]
    if values:
        span = max(max(values) - min(values), 1e-3)
        axes.set_xlim(min(values) - 0.06 * span, max(values) + 0.06 * span)
    better = "more is better" if info.higher_is_better else "less is better"
    axes.set_xlabel(f"{info.name}{info.unit}, {better}; with 95% intervals", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_title(f"{info.name}, by group ({info.of})", fontsize=10)
    return figure


def _draw(axes: "Axes", cell: Cell, place: int, color: str) -> None:
    if cell.value is None or cell.low is None or cell.high is None:
        axes.text(
            0.01, place, "too few to judge", transform=axes.get_yaxis_transform(), va="center", fontsize=7, color="grey"
        )
        return
    spread = [[max(cell.value - cell.low, 0)], [max(cell.high - cell.value, 0)]]
    axes.errorbar([cell.value], [place], xerr=spread, fmt="o", color=color, capsize=3, markersize=5)
