"""The fairness report against answers that are known beforehand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.measure_fairness import render
from tasks.evaluation.attribute_metrics import wilson
from tasks.evaluation.fairness import (
    MINIMUM,
    Cell,
    FairnessReport,
    Measure,
    MeasureInfo,
    classes,
    detection,
    errors,
    report,
    share,
    verification,
    widest_gap,
)
from tasks.evaluation.fairness_plot import plot_measure
from tasks.evaluation.verification import Pairs, UnusablePairs

INFO = MeasureInfo(name="right", of="faces", higher_is_better=True, unit="")


def judged(measures: list[Measure], *columns: str, minimum: int = MINIMUM) -> FairnessReport:
    return report(measures, columns, minimum, [])


def cell(found: FairnessReport, measure: str, **groups: str) -> Cell:
    [one] = [c for c in found.cells if c.measure == measure and c.groups == groups]
    return one


def of_groups(sizes: dict[str, int], right: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """So many observations of each group, of which so many turned out right."""
    groups = [group for group, size in sizes.items() for _ in range(size)]
    return groups, np.concatenate([np.arange(size) < right[group] for group, size in sizes.items()])


def test_rates_are_those_of_each_group_with_wilsons_interval() -> None:
    groups, right = of_groups({"old": 100, "young": 200}, {"old": 80, "young": 190})
    found = judged([share(INFO, {"age": groups}, right)], "age")
    assert cell(found, "right").value == pytest.approx(270 / 300)
    old = cell(found, "right", age="old")
    assert (old.count, old.of, old.value) == (80, 100, 0.8)
    assert (old.low, old.high) == (wilson(80, 100).low, wilson(80, 100).high)
    [gap] = found.gaps
    assert (gap.worst, gap.best) == ("age old", "age young")
    assert gap.difference == pytest.approx(0.15)
    assert gap.clear


def test_gap_has_newcombes_interval() -> None:
    """The worked example (a) of Newcombe, Statistics in Medicine 17 (1998), Table II: 56/70 against 48/80, method 10."""
    groups, right = of_groups({"one": 70, "other": 80}, {"one": 56, "other": 48})
    [gap] = judged([share(INFO, {"arm": groups}, right)], "arm").gaps
    assert (gap.difference, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_groups_too_small_to_judge_get_no_number_and_no_part_in_a_gap() -> None:
    groups, right = of_groups({"few": 29, "many": 30, "more": 60}, {"few": 0, "many": 29, "more": 60})
    found = judged([share(INFO, {"g": groups}, right)], "g")
    few = cell(found, "right", g="few")
    assert (few.value, few.low, few.high, few.count, few.of) == (None, None, None, None, 29)
    [gap] = found.gaps
    assert (gap.worst, gap.judged, gap.refused) == ("g many", 2, 1)
    page = render(found, "title", {"right": plot_measure(found, INFO)})
    assert page.count("too few to judge") == 1


def test_intersections_show_what_single_columns_hide() -> None:
    """Either column alone is even; one intersection does badly."""
    sex, age, right = [], [], []
    for s, a, good in (("f", "old", 20), ("f", "young", 40), ("m", "old", 40), ("m", "young", 20)):
        sex += [s] * 50
        age += [a] * 50
        right += [i < good for i in range(50)]
    found = judged([share(INFO, {"sex": sex, "age": age}, np.array(right))], "sex", "age")
    gaps = {gap.by: gap for gap in found.gaps}
    assert gaps["sex",].difference == gaps["age",].difference == 0
    assert not gaps["sex",].clear
    assert gaps["sex", "age"].difference == pytest.approx(0.4)
    assert gaps["sex", "age"].clear
    assert cell(found, "right", sex="f", age="old").value == pytest.approx(0.4)


def test_observations_of_no_group_count_for_everybody_alone() -> None:
    found = judged([share(INFO, {"g": ["a"] * 40 + [""] * 60}, np.ones(100, bool))], "g")
    assert (cell(found, "right").of, cell(found, "right", g="a").of, len(found.cells)) == (100, 40, 2)
    assert found.gaps == ()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=80), st.integers(10, 40))
def test_no_number_is_ever_given_for_fewer_than_the_minimum(rows: list[tuple[str, bool]], minimum: int) -> None:
    groups, right = [g for g, _ in rows], np.array([r for _, r in rows])
    for found in judged([share(INFO, {"g": groups}, right)], "g", minimum=minimum).cells:
        assert (found.value is None) == (found.of < minimum)
        assert found.value is None or found.low <= found.value <= found.high


def pairs_of(kinds: list[tuple[str, str, bool, float]]) -> tuple[Pairs, np.ndarray, dict[str, dict[str, str]]]:
    """Pairs (group of one picture, of the other, same person, similarity), each with pictures of its own."""
    a, b = [f"{i}a" for i in range(len(kinds))], [f"{i}b" for i in range(len(kinds))]
    groups = {name: kind[side] for side, names in enumerate((a, b)) for name, kind in zip(names, kinds, strict=True)}
    pairs = Pairs(np.zeros(len(kinds), np.int64), tuple(a), tuple(b), np.array([kind[2] for kind in kinds]))
    return pairs, np.array([kind[3] for kind in kinds]), {"g": groups}


def test_one_threshold_for_all_and_only_pairs_within_a_group_count_for_it() -> None:
    kinds = [("x", "x", False, 0.1 + i / 1000) for i in range(100)] + [
        ("y", "y", False, 0.5 + i / 1000) for i in range(100)
    ]
    kinds += [("x", "x", True, 0.9)] * 40 + [("y", "y", True, 0.9)] * 30 + [("y", "y", True, 0.2)] * 10
    kinds += (
        [("x", "y", True, 0.2)] * 50 + [("x", "x", True, float("nan"))] * 10 + [("x", "x", False, float("nan"))] * 10
    )
    pairs, similarities, groups = pairs_of(kinds)
    measures, threshold = verification(pairs, similarities, groups, far_target=0.01)
    found = judged(measures, "g")
    assert 0.5 < threshold < 0.6
    accepts = {g: cell(found, "false accepts", g=g) for g in "xy"}
    assert (accepts["x"].count, accepts["x"].of) == (0, 100)  # a face not found tells nothing of two people
    assert (accepts["y"].count, accepts["y"].of) == (2, 100)
    rejects = {g: cell(found, "false rejects", g=g) for g in "xy"}
    assert (rejects["x"].count, rejects["x"].of) == (10, 50)  # a face not found is not recognised
    assert (rejects["y"].count, rejects["y"].of) == (10, 40)
    assert cell(found, "false rejects").of == 140


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (("x", "x", True, 0.9), "no pair of two people"),
        (("x", "x", False, float("nan")), "in none of its 40 pairs of two people both faces were found"),
    ],
)
def test_pairs_that_give_no_threshold_are_refused_by_file(kind: tuple[str, str, bool, float], why: str) -> None:
    pairs, similarities, groups = pairs_of([kind] * 40)
    with pytest.raises(UnusablePairs, match=f"^lfw.csv: {why}"):
        verification(replace(pairs, path=Path("lfw.csv")), similarities, groups, far_target=0.01)


def test_attributes_and_numbers_and_detection_are_judged_by_group() -> None:
    labels = np.array([0, 1] * 60)
    answers = np.where(np.arange(120) < 60, labels, 0)  # the second half always answers the first class
    probabilities = np.eye(2)[answers] * 0.8 + 0.1
    groups = {"half": ["first"] * 60 + ["second"] * 60}
    distances = np.where(np.arange(120) < 60, 1.0, -5.0)
    found = judged(
        [
            *classes("smile", ("no", "yes"), groups, labels, probabilities),
            errors("age", "years", groups, distances),
            detection(groups, np.arange(120) != 7),
        ],
        "half",
    )
    assert cell(found, "smile: accuracy", half="second").value == 0.5
    assert cell(found, "smile: macro-F1", half="first").value == 1
    assert cell(found, "smile: macro-F1", half="second").value == pytest.approx((2 / 3) / 2)
    assert cell(found, "age: mean absolute error", half="second").value == 5
    assert cell(found, "faces found", half="first").count == 59
    worst = {gap.measure: gap.worst for gap in found.gaps}
    assert worst["age: mean absolute error"] == worst["smile: accuracy"] == "half second"


def test_of_measures_whose_less_is_better_the_highest_is_worst() -> None:
    cells = [
        Cell(measure="m", groups={"g": g}, of=50, value=v, low=v - 0.1, high=v + 0.1)
        for g, v in zip("ab", (0.2, 0.6), strict=True)
    ]
    for better, worst in ((True, "g a"), (False, "g b")):
        gap = widest_gap(MeasureInfo(name="m", of="x", higher_is_better=better, unit=""), ("g",), cells)
        assert gap is not None
        assert gap.worst == worst


def test_page_holds_every_number_escapes_names_and_needs_nothing_beside_it() -> None:
    groups, right = of_groups({"<b>old</b>": 100, "young": 200}, {"<b>old</b>": 80, "young": 190})
    found = judged([share(INFO, {"age": groups}, right)], "age")
    page = render(found, "model@1 on faces.tar", {"right": plot_measure(found, INFO)})
    assert "80.0%" in page
    assert "95.0%" in page
    assert "<b>old" not in page
    assert "http" not in page.replace("data:image", "")
    assert json.loads(found.model_dump_json())["minimum"] == MINIMUM
