"""One markdown table of what was measured, ready for the README."""

from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """What was measured, the figure, and what it is to be seen beside."""

    what: str
    figure: str
    beside: str = ""


def markdown(rows: Iterable[Row]) -> str:
    """Lay rows out as a markdown table."""
    lines = [Row("measured", "figure", "beside"), Row("---", "---", "---"), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def seconds(value: float) -> str:
    """Seconds with two or three significant digits."""
    if value >= 10:
        return f"{value:.0f} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


def megabytes(value: float) -> str:
    """Bytes in units of 2**20."""
    return f"{value / 2**20:,.0f} MB"


def shares(parts: dict[str, float], whole: float, least: float = 0.005) -> str:
    """Name the parts of a whole in per cent, largest first, without what is smaller than `least` of it."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in ordered if value >= least * whole)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
