"""Verification: protocol, operating points, missing faces and bad input, against slow and obvious computations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.evaluation.verification import (
    VerificationReport,
    best_accuracy_threshold,
    evaluate,
    pair_similarities,
    plot_roc,
    read_pairs,
    threshold_at_far,
)
from tests.reference import shared

Labelled = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]


def labelled(pairs: int = 2000, folds: int = 5, seed: int = 0, decimals: int = 2) -> Labelled:
    """Overlapping similarities with many ties."""
    random = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    similarities = np.round(random.normal(np.where(same, 0.6, 0.3), 0.12), decimals).clip(-1, 1)
    return similarities, same, np.arange(pairs) // 2 % folds


def test_every_fold_is_judged_with_the_threshold_of_the_others() -> None:
    similarities, same, folds = labelled(pairs=300, folds=3)
    report = evaluate(similarities, same, folds)
    for result in report.folds:
        outside, inside = folds != result.fold, folds == result.fold
        candidates = np.linspace(-0.5, 1.2, 3401)
        best = max(((similarities[outside] >= t) == same[outside]).mean() for t in candidates)
        assert ((similarities[outside] >= result.threshold) == same[outside]).mean() == best
        assert result.accuracy == ((similarities[inside] >= result.threshold) == same[inside]).mean()
    accuracies = np.array([result.accuracy for result in report.folds])
    assert report.accuracy == pytest.approx(accuracies.mean())
    assert report.accuracy_standard_error == pytest.approx(accuracies.std(ddof=1) / np.sqrt(3))


def test_a_fold_cannot_choose_its_own_threshold() -> None:
    similarities = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    same = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    report = evaluate(similarities, same, np.repeat([1, 2], 4))
    assert [result.accuracy for result in report.folds] == [0.5, 0.5]  # each is perfect with its own threshold


def test_false_accept_rate_is_never_exceeded_even_with_ties() -> None:
    similarities, same, folds = labelled(decimals=1)
    impostor = similarities[~same]
    for point in evaluate(similarities, same, folds).operating_points:
        assert (impostor >= point.threshold).mean() == point.far <= point.far_target
        assert (similarities[same] >= point.threshold).mean() == point.tar
        lower = np.nextafter(point.threshold, -np.inf)
        assert (impostor >= lower).mean() > point.far_target  # the next lower threshold would exceed it
        assert point.tar_low <= point.tar <= point.tar_high


def test_exactly_the_allowed_number_of_false_accepts_is_used() -> None:
    impostor = np.random.default_rng(3).normal(size=3000)
    assert (impostor >= threshold_at_far(impostor, 0.001)).sum() == 3
    assert (impostor[:999] >= threshold_at_far(impostor[:999], 0.001)).sum() == 0


def test_confidence_interval_agrees_with_resampling_the_pairs() -> None:
    similarities, same, folds = labelled(pairs=800, decimals=6)
    genuine, impostor = similarities[same], similarities[~same]
    random = np.random.default_rng(5)
    rates = []
    for _ in range(3000):
        drawn = random.choice(impostor, len(impostor))
        rates.append((random.choice(genuine, len(genuine)) >= threshold_at_far(drawn, 0.01)).mean())
    point = evaluate(similarities, same, folds).operating_points[0]
    assert [point.tar_low, point.tar_high] == pytest.approx(np.quantile(rates, [0.025, 0.975]), abs=0.03)


def test_area_is_the_chance_that_a_genuine_pair_beats_an_impostor() -> None:
    similarities, same, folds = labelled(pairs=400, decimals=1)
    difference = similarities[same][:, None] - similarities[~same]
    expected = (difference > 0).mean() + (difference == 0).mean() / 2
    assert evaluate(similarities, same, folds).auc == pytest.approx(expected)


def test_equal_error_rate_lies_where_both_errors_are_equal() -> None:
    similarities, same, folds = labelled(pairs=20_000, decimals=8)
    eer = evaluate(similarities, same, folds).eer
    threshold = np.quantile(similarities[~same], 1 - eer)
    assert (similarities[same] < threshold).mean() == pytest.approx(eer, abs=2e-4)
    assert 0.09 < eer < 0.12  # two unit-variance Gaussians 2.5 apart: Phi(-1.25) = 0.106


def test_perfect_separation_is_reported_as_perfect() -> None:
    same = np.arange(100) % 2 == 0
    report = evaluate(np.where(same, 0.9, 0.1), same, np.arange(100) // 50)
    assert (report.accuracy, report.auc, report.eer) == (1.0, 1.0, 0.0)
    assert [(point.tar, point.far) for point in report.operating_points] == [(1.0, 0.0)] * 2
    assert all(0.1 < result.threshold < 0.9 for result in report.folds)


def test_similarities_without_information_score_at_chance() -> None:
    _, same, folds = labelled(pairs=4000)
    report = evaluate(np.zeros(4000), same, folds)
    assert (report.accuracy, report.auc, report.eer) == (0.5, 0.5, 0.5)
    assert [point.tar for point in report.operating_points] == [0.0, 0.0]


def test_missing_faces_count_as_wrong_and_never_as_accepted() -> None:
    similarities, same, folds = labelled()
    whole = evaluate(similarities, same, folds)
    holes = similarities.copy()
    gone = np.random.default_rng(1).choice(len(same), 200, replace=False)
    holes[gone] = np.nan
    report = evaluate(holes, same, folds, nan_is_missing_face=True)
    assert report.missing_pairs == 200
    assert report.accuracy < whole.accuracy - 0.05
    for point in report.operating_points:
        assert point.tar == (holes[same] >= point.threshold).mean()
        assert point.far == (holes[~same & ~np.isnan(holes)] >= point.threshold).mean()
    assert max(report.roc_tar) == 1 - np.isnan(holes[same]).mean()


def test_all_pairs_of_a_fold_missing_scores_zero_there() -> None:
    similarities, same, folds = labelled(pairs=400, folds=4)
    similarities[folds == 2] = np.nan
    report = evaluate(similarities, same, folds, nan_is_missing_face=True)
    assert [result.accuracy for result in report.folds if result.fold == 2] == [0.0]


def test_roc_is_thin_monotone_and_spans_from_strict_to_lenient() -> None:
    similarities, same, folds = labelled(pairs=20_000, decimals=8)
    report = evaluate(similarities, same, folds)
    assert len(report.roc_far) == len(report.roc_tar) == len(report.roc_thresholds) <= 210
    assert (report.roc_far[0], report.roc_far[-1]) == (0.0, 1.0)
    assert (np.diff(report.roc_far) >= 0).all()
    assert (np.diff(report.roc_tar) >= 0).all()
    assert (np.diff(report.roc_thresholds) < 0).all()


@given(st.permutations(range(60)))
def test_report_does_not_depend_on_the_order_of_pairs(order: list[int]) -> None:
    arrays = labelled(pairs=60, folds=3, decimals=1)
    assert evaluate(*arrays) == evaluate(*(array[order] for array in arrays))


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({same for _, same in rows}) == 2
    )
)
def test_best_threshold_is_best_among_all(rows: list[tuple[int, bool]]) -> None:
    similarities, same = np.array([s / 10 for s, _ in rows]), np.array([label for _, label in rows])
    chosen = best_accuracy_threshold(similarities, same)
    candidates = np.arange(-100, 101) / 100 + 0.005
    best = max(((similarities >= t) == same).sum() for t in candidates)
    assert ((similarities >= chosen) == same).sum() == best


def test_best_threshold_stands_between_neighbouring_floats() -> None:
    low = 0.5
    high = np.nextafter(low, 1)
    assert best_accuracy_threshold(np.array([low, high]), np.array([False, True])) == high


def test_report_survives_json() -> None:
    report = evaluate(*labelled())
    assert VerificationReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y, f: (s, y, np.zeros_like(f)), "at least 2"),
        (lambda s, y, f: (s, np.ones_like(y), f), "only pairs of one person"),
        (lambda s, y, f: (s, np.zeros_like(y), f), "only pairs of two people"),
        (lambda s, y, f: (s, y, np.where(y, 1, 2)), "outside fold 1 there is only pairs of two people"),
        (lambda s, y, f: (s[:-1], y, f), "must match"),
        (lambda s, y, f: (np.where(f == 0, np.nan, s), y, f), "400 similarities are NaN"),
        (lambda s, y, f: (np.where(f == 0, np.inf, s), y, f), "400 similarities are infinite"),
        (lambda s, y, f: (s, y + 1, f), "must be boolean"),
    ],
)
def test_nonsense_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        evaluate(*change(*labelled()))


def test_nothing_but_missing_faces_is_refused() -> None:
    similarities, same, folds = labelled()
    with pytest.raises(ValueError, match="no pair with a similarity"):
        evaluate(np.full_like(similarities, np.nan), same, folds, nan_is_missing_face=True)


def test_roc_plot_shows_curve_and_operating_points(tmp_path: Path) -> None:
    figure = plot_roc(evaluate(*labelled()))
    figure.savefig(tmp_path / "roc.png")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert sum("TAR" in text.get_text() for text in axes.get_legend().get_texts()) == 2
    assert (tmp_path / "roc.png").stat().st_size > 10_000


def test_similarity_is_the_cosine_and_nan_without_a_face(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("fold,a,b,same\n1,x.jpg,y.jpg,1\n1,x.jpg,z.jpg,0\n2,z.jpg,y.jpg,0\n")
    embeddings = {"x.jpg": np.array([1, 0], np.float32), "y.jpg": np.array([0.6, 0.8], np.float32)}
    similarities = pair_similarities(read_pairs(tmp_path / "pairs.csv"), embeddings)
    assert similarities == pytest.approx([0.6, np.nan, np.nan], nan_ok=True)
    assert np.isnan(pair_similarities(read_pairs(tmp_path / "pairs.csv"), {})).all()


def test_published_pairs_are_read_whole() -> None:
    pairs = read_pairs(shared("data/lfw_pairs_folds_1_5.csv"))
    assert len(pairs) == 2791
    assert set(pairs.fold) == {1, 2, 3, 4, 5}
    assert (pairs.a[0], pairs.b[0], pairs.same[0]) == ("Abel_Pacheco_0001.jpg", "Abel_Pacheco_0004.jpg", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column fold, a, b, same"),
        ("fold,a,b\n1,x,y\n", "line 1: no column same"),
        ("fold,a,b,same\n", "no pairs"),
        ("fold,a,b,same\n1,x,y,1\none,x,y,1\n", "line 3: fold is 'one'"),
        ("fold,a,b,same\n1,x,y,yes\n", "line 2: same is 'yes'"),
        ("fold,a,b,same\n1,x,y\n", "line 2: same is ''"),
        ("fold,a,b,same\n1,,y,1\n", "line 2: an image name is empty"),
        ("fold,a,b,same\n1,x,x,1\n", "line 2: 'x' is paired with itself"),
    ],
)
def test_bad_pairs_file_is_refused_naming_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_pairs(path)
    assert str(path) in str(error.value)


def test_binary_file_is_refused_as_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"\xff\xd8\xff\xe0JFIF")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_pairs(path)
