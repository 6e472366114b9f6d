"""Fairness: the same measures for every group of people or photographs, with how sure they are, and the widest gaps.

After Hazirbas et al., "Towards Measuring Fairness in AI: the Casual Conversations Dataset", 2021 (arXiv:2104.02821): groups
come from labels that people gave, never from a model's guess. One threshold serves all, as it does in use. A group with fewer
than `minimum` observations gets no number: chance would speak, and be believed.

Intervals are 95%: Wilson's for shares, the bootstrap over faces for the rest; those of gaps are made of both groups' own
(Newcombe, Statistics in Medicine 1998, method 10, and its generalisation MOVER). All take observations as independent: pairs
that share people make them too narrow. The widest of many gaps is wide by chance too, which no interval of one gap tells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.evaluation.attribute_metrics import class_report, wilson
from tasks.evaluation.verification import Pairs, UnusablePairs, threshold_at_far

MINIMUM = 30  # observations: a share of so many has an interval of up to 34 points, and fewer say next to nothing
DRAWS = 1000
SEED = 2021
EVERYBODY = "everybody"
Rows = NDArray[np.int64]


class Cell(BaseModel):
    """One measure of one group: `groups` name column and value; `value` is None where there are too few to judge.

    `of` is the number of observations; `count`, of a share, how many of them.
    """

    model_config = ConfigDict(frozen=True)

    measure: str
    groups: dict[str, str]
    of: int
    count: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def name(self) -> str:
        return ", ".join(f"{column} {value}" for column, value in self.groups.items()) or EVERYBODY


class Gap(BaseModel):
    """The widest gap of a measure between groups by the same columns. `clear`: its interval does not hold 0."""

    model_config = ConfigDict(frozen=True)

    measure: str
    by: tuple[str, ...]
    worst: str
    best: str
    difference: float
    low: float
    high: float
    judged: int
    refused: int

    @property
    def clear(self) -> bool:
        return self.low > 0


class MeasureInfo(BaseModel):
    """What a measure counts, of what, and which end is good."""

    model_config = ConfigDict(frozen=True)

    name: str
    of: str
    higher_is_better: bool
    unit: str


class FairnessReport(BaseModel):
    """All measures of all groups. The first cell of every measure is everybody's."""

    model_config = ConfigDict(frozen=True)

    minimum: int
    columns: tuple[str, ...]
    measures: tuple[MeasureInfo, ...]
    cells: tuple[Cell, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """A measure of some observations, with its interval."""

    value: float
    low: float
    high: float
    count: int | None = None


@dataclass(frozen=True)
class Measure:
    """Observations of one kind, the groups that each belongs to ("" for none), and what is made of some of them."""

    info: MeasureInfo
    groups: Mapping[str, Sequence[str]]
    count: int
    summarize: Callable[[Rows], Summary]


def report(measures: Sequence[Measure], columns: Sequence[str], minimum: int, notes: Sequence[str]) -> FairnessReport:
    """Judge every measure for everybody, for the groups of each column, and for those of every two columns together."""
    cells: list[Cell] = []
    gaps: list[Gap] = []
    for measure in measures:
        for by in [(), *((column,) for column in columns), *combinations(columns, 2)]:
            found = [_cell(measure, groups, rows, minimum) for groups, rows in grouped(measure, by)]
            cells += found
            if by and (gap := widest_gap(measure.info, by, found)) is not None:
                gaps.append(gap)
    return FairnessReport(
        minimum=minimum,
        columns=tuple(columns),
        measures=tuple(measure.info for measure in measures),
        cells=tuple(cells),
        gaps=tuple(gaps),
        notes=tuple(notes),
    )


def grouped(measure: Measure, by: Sequence[str]) -> list[tuple[dict[str, str], Rows]]:
    """The observations of each group by some columns, in the order of the groups' names; those of no group in none."""
    values = np.array([measure.groups[column] for column in by], dtype=object).reshape(len(by), measure.count)
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, group in enumerate(map(tuple, values.T)) if by else ((row, ()) for row in range(measure.count)):
        if all(group):
            rows.setdefault(group, []).append(row)
    return [(dict(zip(by, group, strict=True)), np.array(rows[group], np.int64)) for group in sorted(rows)]


def widest_gap(info: MeasureInfo, by: tuple[str, ...], cells: Sequence[Cell]) -> Gap | None:
    """The gap between the best and the worst of the groups that could be judged; None if there are not two."""
    judged = [cell for cell in cells if cell.value is not None]
    if len(judged) < 2:
        return None
    low, high = (pick(judged, key=lambda cell: (cell.value or 0.0, cell.name)) for pick in (min, max))
    assert low.value is not None
    assert low.high is not None
    assert high.value is not None
    assert high.low is not None
    difference = high.value - low.value
    # MOVER: how far each end can give way towards the other, and away from it.
    towards = np.hypot(high.value - high.low, low.high - low.value)
    away = np.hypot((high.high or high.value) - high.value, low.value - (low.low or 0.0))
    worst, best = (low, high) if info.higher_is_better else (high, low)
    return Gap(
        measure=info.name,
        by=by,
        worst=worst.name,
        best=best.name,
        difference=difference,
        low=difference - towards,
        high=difference + away,
        judged=len(judged),
        refused=len(cells) - len(judged),
    )


def _cell(measure: Measure, groups: dict[str, str], rows: Rows, minimum: int) -> Cell:
    if len(rows) < minimum:
        return Cell(measure=measure.info.name, groups=groups, of=len(rows))
    summary = measure.summarize(rows)
    return Cell(
        measure=measure.info.name,
        groups=groups,
        of=len(rows),
        count=summary.count,
        value=summary.value,
        low=summary.low,
        high=summary.high,
    )


# --- what is measured


def share(info: MeasureInfo, groups: Mapping[str, Sequence[str]], outcomes: NDArray[np.bool_]) -> Measure:
    """How many of the observations turned out so, (N,) bool."""

    def summarize(rows: Rows) -> Summary:
        found = wilson(int(outcomes[rows].sum()), len(rows))
        return Summary(found.value, found.low, found.high, found.count)

    return Measure(info, groups, len(outcomes), summarize)


def detection(groups: Mapping[str, Sequence[str]], found: NDArray[np.bool_]) -> Measure:
    """In how many of the pictures the face was found."""
    info = MeasureInfo(name="faces found", of="pictures", higher_is_better=True, unit="")
    return share(info, groups, found)


def verification(
    pairs: Pairs, similarities: NDArray[np.float64], groups: Mapping[str, Mapping[str, str]], far_target: float
) -> tuple[list[Measure], float]:
    """False rejects and false accepts of pairs whose two pictures are in one group, at one threshold for all.

    `similarities` (P,), NaN where a face was not found: such a pair of one person is rejected, one of two people tells
    nothing. The threshold, which is returned too, lets at most the share `far_target` of all pairs of two people pass.
    `groups`: by column, the group of each picture.

    Raises:
        UnusablePairs: if both faces were found in no pair of two people, so that nothing gives a threshold.
    """
    there = ~np.isnan(similarities)
    if not (there & ~pairs.same).any():
        strangers = int((~pairs.same).sum())
        why = (
            f"in none of its {strangers} pairs of two people both faces were found"
            if strangers
            else "no pair of two people"
        )
        raise UnusablePairs(f"{pairs.path}: {why}; the threshold for all groups comes from such pairs")
    threshold = threshold_at_far(similarities[there & ~pairs.same], far_target)
    same, different = np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same & there)

    def together(rows: Rows) -> dict[str, list[str]]:
        return {
            column: [of[a] if (a := pairs.a[row]) in of and of[a] == of.get(pairs.b[row]) else "" for row in rows]
            for column, of in groups.items()
        }

    rejects = MeasureInfo(name="false rejects", of="pairs of one person", higher_is_better=False, unit="")
    accepts = MeasureInfo(name="false accepts", of="pairs of two people", higher_is_better=False, unit="")
    return [
        share(rejects, together(same), ~(similarities[same] >= threshold)),
        share(accepts, together(different), similarities[different] >= threshold),
    ], threshold


def classes(
    what: str,
    names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
) -> list[Measure]:
    """Accuracy and macro-F1 of estimates (N, C) of a category against labels (N,)."""
    right = probabilities.argmax(axis=1) == labels

    def macro_f1(rows: Rows) -> Summary:
        found = class_report(names, labels[rows], probabilities[rows])
        return Summary(found.macro_f1, found.macro_f1_low, found.macro_f1_high)

    accuracy = MeasureInfo(name=f"{what}: accuracy", of="labelled faces", higher_is_better=True, unit="")
    f1 = MeasureInfo(name=f"{what}: macro-F1", of="labelled faces", higher_is_better=True, unit="")
    return [share(accuracy, groups, right), Measure(f1, groups, len(labels), macro_f1)]


def errors(what: str, unit: str, groups: Mapping[str, Sequence[str]], misses: NDArray[np.float64]) -> Measure:
    """Mean absolute error of estimates of a number, from how far (N,) each is from its label."""
    info = MeasureInfo(
        name=f"{what}: mean absolute error", of="labelled faces", higher_is_better=False, unit=f" {unit}"
    )
    distances = np.abs(misses)

    def summarize(rows: Rows) -> Summary:
        random, own = np.random.default_rng(SEED), distances[rows]
        means = own[random.integers(len(own), size=(DRAWS, len(own)))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        return Summary(float(own.mean()), float(low), float(high))

    return Measure(info, groups, len(distances), summarize)
