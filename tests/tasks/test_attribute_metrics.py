"""Metrics of estimates, against answers worked out by hand or known beforehand."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from tasks.evaluation.attribute_metrics import class_report, number_report, plot_classes, wilson

CLASSES = ("anger", "fear", "joy")


def sure_of(*estimated: int, confidence: float = 0.8) -> np.ndarray:
    """Probabilities that answer so, each with the same confidence."""
    rest = (1 - confidence) / 2
    return np.array([[confidence if i == answer else rest for i in range(3)] for answer in estimated])


@pytest.mark.parametrize(("count", "of"), [(0, 10), (1, 10), (5, 10), (10, 10), (300, 1000)])
def test_interval_of_a_share_is_wilsons(count: int, of: int) -> None:
    share, expected = wilson(count, of), binomtest(count, of).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share.low <= share.value <= share.high


def test_a_share_of_nothing_is_no_number() -> None:
    assert math.isnan(wilson(0, 0).value)


def test_scores_are_those_worked_out_by_hand() -> None:
    report = class_report(CLASSES, np.array([0, 0, 0, 2, 2, 2, 2, 2]), sure_of(0, 0, 2, 2, 2, 2, 2, 0))
    assert report.confusion == ((2, 0, 1), (0, 0, 0), (1, 0, 4))
    assert (report.accuracy.count, report.accuracy.of) == (6, 8)
    anger, fear, joy = report.scores
    assert (anger.precision, anger.recall, anger.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (joy.precision, joy.recall, joy.f1) == pytest.approx((0.8, 0.8, 0.8))
    assert (fear.labelled, fear.estimated) == (0, 0)
    assert math.isnan(fear.f1)
    assert report.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)  # fear is labelled nowhere: it has no say
    assert report.balanced_accuracy == pytest.approx((2 / 3 + 0.8) / 2)
    assert report.macro_f1_low < report.macro_f1 < report.macro_f1_high


def test_calibration_error_is_what_confidence_and_truth_differ_by() -> None:
    labels = np.zeros(10, np.int64)
    right, wrong = sure_of(0), sure_of(2)
    as_sure_as_right = np.concatenate([right] * 8 + [wrong] * 2)
    too_sure = np.concatenate([right] * 3 + [wrong] * 7)
    assert class_report(CLASSES, labels, as_sure_as_right).calibration_error == pytest.approx(0, abs=1e-9)
    report = class_report(CLASSES, labels, too_sure)
    assert report.calibration_error == pytest.approx(0.5)
    assert report.log_loss == pytest.approx(-(0.3 * math.log(0.8) + 0.7 * math.log(0.1)))
    assert report.bins == ((pytest.approx(0.8), pytest.approx(0.3), 10),)


def test_always_answering_the_commonest_class_is_found_out_by_macro_f1() -> None:
    labels = np.array([0] * 90 + [1] * 5 + [2] * 5)
    report = class_report(CLASSES, labels, sure_of(*[0] * 100))
    assert report.accuracy.value == 0.9
    assert report.balanced_accuracy == pytest.approx(1 / 3)
    assert report.macro_f1 < 0.33


def test_interval_of_macro_f1_narrows_with_faces() -> None:
    labels, answers = np.array([0, 0, 1, 1, 2, 2]), sure_of(0, 1, 1, 1, 2, 0)
    few = class_report(CLASSES, labels, answers)
    many = class_report(CLASSES, np.tile(labels, 50), np.tile(answers, (50, 1)))
    assert many.macro_f1 == pytest.approx(few.macro_f1)
    assert many.macro_f1_high - many.macro_f1_low < (few.macro_f1_high - few.macro_f1_low) / 3


def test_errors_of_numbers_have_their_unit_and_something_to_beat() -> None:
    report = number_report("years", np.array([20.0, 30, 40]), np.array([22.0, 30, 36]))
    assert (report.mean_absolute_error, report.median_absolute_error, report.bias) == pytest.approx((2, 2, -2 / 3))
    assert report.mean_absolute_error_of_the_mean == pytest.approx(20 / 3)
    assert report.unit == "years"


def test_plot_shows_every_count_and_both_numbers() -> None:
    report = class_report(CLASSES, np.array([0, 1, 2, 2]), sure_of(0, 1, 2, 0))
    figure = plot_classes(report, "expression by somebody")
    left, right = figure.axes
    assert sorted(text.get_text() for text in left.texts) == ["1", "1", "1", "1"]
    assert "macro-F1" in left.get_title()
    assert "calibration error" in right.get_title()
