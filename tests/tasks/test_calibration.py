"""Calibration: probabilities that mean what they say, thresholds that hold, a JSON that comes back the same."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from tasks.calibration import Calibration
from tasks.evaluation.calibration import fit

Pairs = tuple[NDArray[np.float64], NDArray[np.bool_]]


def gaussian(n_same: int = 2000, n_different: int = 2000, seed: int = 0) -> Pairs:
    """Similarities 0.7 and 0.3 on average, both of deviation 0.1: log-odds are then exactly 40 s - 20 at equal priors."""
    random = np.random.default_rng(seed)
    scores = np.concatenate([random.normal(0.7, 0.1, n_same), random.normal(0.3, 0.1, n_different)])
    return scores.clip(-1, 1), np.repeat([True, False], [n_same, n_different])


def calibrated(pairs: Pairs | None = None) -> Calibration:
    return fit(*(pairs or gaussian()), contract="sha256:abc", source="synthetic")


def test_curve_is_the_true_likelihood_ratio() -> None:
    calibration = calibrated(gaussian(20_000, 20_000))
    assert calibration.slope == pytest.approx(40, rel=0.06)
    assert calibration.similarity(0.5) == pytest.approx(0.5, abs=0.005)


def test_probability_does_not_depend_on_how_many_pairs_of_each_kind_were_labelled() -> None:
    balanced, skewed = calibrated(gaussian(20_000, 20_000)), calibrated(gaussian(2_000, 40_000))
    assert skewed.probability(0.45) == pytest.approx(balanced.probability(0.45), abs=0.02)


def test_prior_moves_the_odds_by_its_own_odds() -> None:
    calibration = calibrated()
    even, rare = calibration.probability(0.5), calibration.probability(0.5, prior=0.01)
    assert rare / (1 - rare) == pytest.approx(even / (1 - even) / 99)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_probability_rises_with_similarity_and_prior(a: float, b: float, prior: float, other: float) -> None:
    calibration = calibrated(gaussian(50, 50))
    low, high = sorted((a, b))
    assert 0 <= calibration.probability(low, prior) <= calibration.probability(high, prior) <= 1
    assert calibration.probability(a, min(prior, other)) <= calibration.probability(a, max(prior, other))


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_similarity_undoes_probability(probability: float, prior: float) -> None:
    calibration = calibrated(gaussian(50, 50))
    assert calibration.probability(calibration.similarity(probability, prior), prior) == pytest.approx(probability)


def test_array_and_number_give_the_same_probability() -> None:
    calibration = calibrated()
    array = calibration.probability(np.array([0.2, 0.5]), prior=0.1)
    assert array.tolist() == [calibration.probability(0.2, prior=0.1), calibration.probability(0.5, prior=0.1)]


def test_thresholds_keep_their_false_accept_rates() -> None:
    scores, same = gaussian()
    thresholds = calibrated((scores, same)).thresholds
    rates = [(scores[~same] >= t).mean() for t in (thresholds.far_1e_1, thresholds.far_1e_2, thresholds.far_1e_3)]
    assert rates == [0.1, 0.01, 0.001]
    assert thresholds.accuracy == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("pairs", [10, 100, 999])
def test_rate_that_pairs_are_too_few_for_is_estimated_and_rarely_exceeded(pairs: int) -> None:
    thresholds = [calibrated(gaussian(100, pairs, seed)).thresholds.far_1e_3 for seed in range(40)]
    really = [1 - NormalDist(0.3, 0.1).cdf(threshold) for threshold in thresholds]
    assert np.median(really) < 0.0015
    assert (
        np.mean(really) < {10: 0.01, 100: 0.0015, 999: 0.0012}[pairs]
    )  # one stranger more than the highest: 9%, 1%, 0.1%


def test_estimated_threshold_lies_above_every_stranger_that_was_seen() -> None:
    scores, same = gaussian(50, 50)
    scores[-1] = 0.9
    thresholds = calibrated((scores, same)).thresholds
    assert thresholds.far_1e_1 < thresholds.far_1e_2 <= thresholds.far_1e_3
    assert thresholds.far_1e_3 > 0.9


def test_complete_separation_still_gives_a_finite_curve() -> None:
    scores = np.concatenate([np.linspace(0.8, 0.9, 50), np.linspace(0.1, 0.2, 50)])
    calibration = calibrated((scores, np.arange(100) < 50))
    assert np.isfinite(calibration.slope)
    assert calibration.probability(0.85) == pytest.approx(51 / 52, abs=0.002)  # Platt's target for 50 pairs


def test_json_round_trip_keeps_every_bit() -> None:
    calibration = calibrated()
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_calibration_is_immutable_and_refuses_unknown_fields() -> None:
    calibration = calibrated()
    with pytest.raises(ValidationError):
        calibration.slope = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="colour"):
        Calibration.model_validate(calibration.model_dump() | {"colour": 1})
    with pytest.raises(ValidationError, match="slope"):
        Calibration.model_validate(calibration.model_dump() | {"slope": -1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y: (-s, y), "not more similar"),
        (lambda s, y: (np.full_like(s, 0.5), y), "all similarities are equal"),
        (lambda s, y: (np.where(y, np.nan, s), y), "cosines"),
        (lambda s, y: (s * 3, y), "cosines"),
        (lambda s, y: (s, np.arange(len(y)) < 3), "3 pairs of one person"),
        (lambda s, y: (s, np.arange(len(y)) > 3), "4 pairs of two people"),
        (lambda s, y: (s[1:], y), "must match"),
    ],
)
def test_nonsense_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        calibrated(change(*gaussian()))


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_prior_is_refused(prior: float) -> None:
    with pytest.raises(ValueError, match="strictly between"):
        calibrated().probability(0.5, prior)
