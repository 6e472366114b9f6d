"""Labels of pictures: a CSV with a column `image` and columns named as attributes of the vocabulary."""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.spec import Attribute, Kind
from models.vocabulary import ATTRIBUTES

IMAGE = "image"
UNSURE = ("", "?")
YES, NO = ("1", "yes", "true"), ("0", "-1", "no", "false")  # -1 as CelebA has it
LABELLED_KINDS = (Kind.CATEGORY, Kind.PROBABILITY, Kind.FRACTION, Kind.YEARS, Kind.DEGREES, Kind.PIXELS)


class UnusableLabels(ValueError):
    """The label file cannot be used; the message names file and line, and what to do."""


@dataclass(frozen=True)
class Table:
    """A CSV with one row per picture: the texts of its columns, and the line of each row."""

    path: Path
    names: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]


def read_table(path: Path) -> Table:
    """Read a CSV with a column `image` whose names are all different.

    Raises:
        UnusableLabels: naming file and line.
    """
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if IMAGE not in (reader.fieldnames or ()):
                raise UnusableLabels(f"{path}, line 1: no column {IMAGE}: it names the pictures")
            for row in reader:
                texts = {column: (text or "").strip() for column, text in row.items() if column is not None}
                if not texts[IMAGE]:
                    raise UnusableLabels(f"{path}, line {reader.line_num}: no image is named")
                if texts[IMAGE] in rows:
                    raise UnusableLabels(
                        f"{path}, line {reader.line_num}: {texts[IMAGE]!r} is in line {rows[texts[IMAGE]][0]} already"
                    )
                rows[texts[IMAGE]] = reader.line_num, texts
    except UnicodeDecodeError as error:
        raise UnusableLabels(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); is it a CSV?") from None
    if not rows:
        raise UnusableLabels(f"{path}: no labels, only a header")
    columns = [column for column in next(iter(rows.values()))[1] if column != IMAGE]
    return Table(
        path,
        tuple(rows),
        {column: tuple(texts[column] for _, texts in rows.values()) for column in columns},
        tuple(line for line, _ in rows.values()),
    )


def labelled_attributes(table: Table) -> list[Attribute]:
    """The attributes of the vocabulary that a table has a column for.

    Raises:
        UnusableLabels: if there is none, naming some that could be.
    """
    found = [ATTRIBUTES[column] for column in table.columns if column in ATTRIBUTES]
    if masks := [attribute.name for attribute in found if attribute.kind not in LABELLED_KINDS]:
        raise UnusableLabels(f"{table.path}: {', '.join(masks)} cannot be labelled by a cell of a table")
    if not found:
        raise UnusableLabels(
            f"{table.path}: none of its columns ({', '.join(table.columns) or 'only image'}) is an attribute; "
            f"attributes are, for example, expression, age, gender, eyeglasses, yaw"
        )
    return found


def numbers(table: Table, attribute: Attribute, leave_out: Collection[str] = ()) -> NDArray[np.float64]:
    """The labels (N,) of an attribute: class indices, 0 or 1, or numbers; NaN where the cell is empty or left out.

    Raises:
        UnusableLabels: naming the line of a cell that is no class or number of the attribute.
    """
    found = np.full(len(table.names), np.nan)
    for row, text in enumerate(table.columns[attribute.name]):
        if text in UNSURE or text in leave_out:
            continue
        value = _number(text, attribute)
        if value is None:
            raise UnusableLabels(f"{table.path}, line {table.lines[row]}: {_refusal(text, attribute)}")
        found[row] = value
    if np.isnan(found).all():
        raise UnusableLabels(f"{table.path}: no picture has a label of {attribute.name}")
    return found


def classes_of(attribute: Attribute) -> Sequence[str]:
    """The names of the classes that an attribute is judged by; none for a number."""
    if attribute.kind is Kind.PROBABILITY:
        return ("no", "yes")
    return attribute.classes


def _number(text: str, attribute: Attribute) -> float | None:
    if attribute.kind is Kind.CATEGORY:
        return attribute.classes.index(text) if text in attribute.classes else None
    if attribute.kind is Kind.PROBABILITY:
        return 1.0 if text.lower() in YES else 0.0 if text.lower() in NO else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _refusal(text: str, attribute: Attribute) -> str:
    if attribute.kind is Kind.CATEGORY:
        return (
            f"{text!r} is no class of {attribute.name}; classes are {', '.join(attribute.classes)}. "
            f"Correct it, or leave such pictures out: --leave-out {text}"
        )
    expected = "1 or 0" if attribute.kind is Kind.PROBABILITY else f"a number of {attribute.kind.unit}"
    return f"{attribute.name} is {text!r}; it must be {expected}, or empty where it is not known"
