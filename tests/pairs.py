"""Labelled pairs of real faces: the first of the shared pairs in every fold, so that an evaluation takes seconds."""

import csv
from pathlib import Path

from tests.reference import shared


def few_pairs(folder: Path, count: int = 2) -> Path:
    """Write a CSV with `count` pairs of one person and as many of two people from each fold, and return its path."""
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    with shared("data/lfw_pairs_folds_1_5.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["fold"], row["same"]), []).append(row)
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["fold", "a", "b", "same"])
        writer.writeheader()
        for kind in rows.values():
            writer.writerows(kind[:count])
    return path


def pictures() -> Path:
    """Return the tar file with the pictures that the pairs name."""
    return shared("data/lfw_grey_128.tar")
