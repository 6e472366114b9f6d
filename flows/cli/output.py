"""What the command prints: tables for people, JSON for programs. Results go to stdout, everything else to stderr."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

# Piped output is read by programs and by `less`: it is not folded to the 80 columns of a terminal that is not there.
console = Console(width=None if sys.stdout.isatty() else 180)
errors = Console(stderr=True)
BETWEEN = " │ "
LONGEST_WORD = 20  # characters: keys and addresses are longer, and may be folded anywhere


def plain(value: Any) -> Any:
    """Turn rows into what JSON can say; it has no word for numbers that are not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Enum | datetime | date):
        return value.value if isinstance(value, Enum) else value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def print_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    json.dump(plain(value), sys.stdout, ensure_ascii=False, allow_nan=False, indent=2)
    sys.stdout.write("\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows to stdout: as a table, numbers to the right, or where it is too narrow for one, a line for each value."""
    rows = list(rows)
    cells = [[literal(_cell(value)) for value in row] for row in rows]
    least = [_least_width([name, *(row[i].plain for row in cells)]) for i, name in enumerate(columns)]
    console.print(literal(title), style="italic", soft_wrap=True)
    if sum(least) + len(BETWEEN) * len(columns) > console.width:
        _print_records(columns, cells)
        return
    table = Table(header_style="bold", show_edge=False)
    for i, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", min_width=least[i])
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _least_width(texts: Iterable[str]) -> int:
    """How wide a column must be so that no word of it is broken, but for those that are too long for any table."""
    return min(max(len(word) for text in texts for word in text.split() or [""]), LONGEST_WORD)


def _print_records(columns: Sequence[str], cells: Sequence[Sequence[Text]]) -> None:
    for number, row in enumerate(cells):
        record = Table.grid(padding=(0, 2, 0, 0))
        record.add_column(style="bold", no_wrap=True)
        record.add_column(overflow="fold")
        for name, value in zip(columns, row, strict=True):
            record.add_row(name, value)
        if number:
            console.print()
        console.print(record)


def print_error(message: str, exit_code: int, in_json: bool) -> None:
    """Print an error to stderr, unfolded: whoever searches a log for a path finds it. In JSON it is one line, the last."""
    if in_json:
        print(json.dumps({"error": message, "exit_code": exit_code}, ensure_ascii=False), file=sys.stderr)
        return
    errors.print(Text.assemble(("error: ", "bold red"), literal(message, keep="\n")), soft_wrap=True)


def literal(text: str, keep: str = "") -> Text:
    """Text as it is: what looks like markup stays, and what would steer the terminal (file names may) becomes visible."""
    return Text("".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    return str(value)
