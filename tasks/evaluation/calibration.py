"""What a similarity means: from a model's cosine to the probability that two faces are one person.

Platt, "Probabilistic Outputs for Support Vector Machines", 1999: a logistic curve over the score, fitted to labelled pairs.
Labelled pairs say nothing about how often two faces of *your* collection are one person, so the curve is fitted as if same
and different were equally frequent, and whoever knows better states the prior.
"""

import json
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt

from tasks.evaluation.verification import best_accuracy_threshold, threshold_at_far

LOWEST_RATE = 0.001
MIN_PAIRS = 10  # of each kind; below it a curve of two parameters says more about the sample than about the model

Scores = TypeVar("Scores", float, NDArray[np.float64])


def _expit(odds: Any) -> Any:
    return np.exp(-np.logaddexp(0, -odds))  # SciPy has it too, whose import every start would pay for


def _logit(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))


class Thresholds(BaseModel):
    """Cosine similarities from which a pair is accepted: at a false accept rate of 10%, 1%, 0.1%, or with fewest errors.

    A rate below one over the number of different pairs cannot be measured, so that its threshold is estimated: where the normal
    distribution of their mean and deviation has it, but above all of them. Of LFW's strangers, dlib's threshold for 0.1% really
    accepts (median, and 95th percentile, over draws of them) 0.004% and 0.05% if so estimated from 100 pairs, 0.12% and 0.33%
    if measured on 1,387; just above the highest of 100 it would accept 0.7% and 3%.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    far_1e_1: FiniteFloat
    far_1e_2: FiniteFloat
    far_1e_3: FiniteFloat
    accuracy: FiniteFloat


class Calibration(BaseModel):
    """How to read similarities of one embedding contract. log-odds (same : different) = slope * similarity + offset,
    at equal priors. `source` says which pairs it was measured on. Travels as JSON (`model_dump_json`, `model_validate_json`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contract: str = Field(min_length=1)
    metric: Literal["cosine"] = "cosine"
    thresholds: Thresholds
    slope: PositiveFloat = Field(allow_inf_nan=False)
    offset: FiniteFloat
    source: str = Field(min_length=1)
    same_pairs: PositiveInt
    different_pairs: PositiveInt

    @property
    def measures_every_rate(self) -> bool:
        """Whether the threshold of the lowest rate, too, is measured and not estimated."""
        return self.different_pairs * LOWEST_RATE >= 1

    def probability(self, similarity: Scores, prior: float = 0.5) -> Scores:
        """Probability that faces of this similarity are one person, where `prior` is the share of such pairs beforehand."""
        probability: Scores = _expit(self.slope * similarity + self.offset + _logit(_proper(prior)))
        return probability

    def similarity(self, probability: float, prior: float = 0.5) -> float:
        """The similarity that `probability` turns into this probability, both strictly between 0 and 1."""
        return float((_logit(_proper(probability)) - _logit(_proper(prior)) - self.offset) / self.slope)


def fit(similarities: ArrayLike, same: ArrayLike, *, contract: str, source: str) -> Calibration:
    """Calibrate cosine similarities (P,) on pairs labelled `same` (P,) bool.

    Both kinds of pair carry the same weight whatever their number (equal priors), and Platt's softened targets keep the
    curve finite where they separate completely. Leave out pairs in which no face was found.

    Raises:
        ValueError: arrays that do not match, values that are not finite cosines, fewer than MIN_PAIRS of a kind, or
            similarities that do not rise with sameness.
    """
    scores, labels = _checked(similarities, same)
    genuine, impostor = scores[labels], scores[~labels]
    slope, offset = _logistic(genuine, impostor)
    if slope <= 0:
        raise ValueError(
            f"pairs of one person are not more similar (mean {genuine.mean():.3f}) than pairs of two people "
            f"(mean {impostor.mean():.3f}): are these distances, or are the labels swapped?"
        )
    return Calibration(
        contract=contract,
        thresholds=Thresholds(
            far_1e_1=_threshold(impostor, 0.1),
            far_1e_2=_threshold(impostor, 0.01),
            far_1e_3=_threshold(impostor, LOWEST_RATE),
            accuracy=best_accuracy_threshold(scores, labels),
        ),
        slope=slope,
        offset=offset,
        source=source,
        same_pairs=len(genuine),
        different_pairs=len(impostor),
    )


def _threshold(impostor: NDArray[np.float64], far: float) -> float:
    measured = threshold_at_far(impostor, far)
    if far * len(impostor) >= 1:
        return measured
    normal = impostor.mean() + NormalDist().inv_cdf(1 - far) * impostor.std(ddof=1)
    return max(measured, min(1.0, float(normal)))


def _logistic(genuine: NDArray[np.float64], impostor: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset of least weighted cross-entropy against Platt's targets (eq. 9), each kind weighing one half."""
    scores = np.concatenate([genuine, impostor])
    n_same, n_different = len(genuine), len(impostor)
    weights = np.repeat([0.5 / n_same, 0.5 / n_different], [n_same, n_different])
    targets = np.repeat([(n_same + 1) / (n_same + 2), 1 / (n_different + 2)], [n_same, n_different])
    centre, spread = scores.mean(), scores.std()
    if spread == 0:
        raise ValueError("all similarities are equal: there is nothing to calibrate")
    standard = (scores - centre) / spread

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        odds = parameters[0] * standard + parameters[1]
        entropy = weights @ (np.logaddexp(0, odds) - targets * odds)
        error = weights * (_expit(odds) - targets)
        return float(entropy), np.array([error @ standard, error.sum()])

    from scipy.optimize import minimize  # noqa: PLC0415 - a fifth of a second, and only calibrating needs it

    slope, offset = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return float(slope / spread), float(offset - slope * centre / spread)


def _checked(similarities: ArrayLike, same: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, labels = np.asarray(similarities, dtype=np.float64), np.asarray(same)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"similarities {scores.shape} and same {labels.shape} must match: (P,)")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("same must be boolean")
    labels = labels.astype(bool)
    if not (np.abs(scores) <= 1 + 1e-5).all():  # NaN fails too
        raise ValueError("similarities must be cosines in -1..1; leave out pairs in which no face was found")
    for kind, count in (("one person", int(labels.sum())), ("two people", int((~labels).sum()))):
        if count < MIN_PAIRS:
            raise ValueError(f"{count} pairs of {kind}; at least {MIN_PAIRS} are needed to calibrate")
    return scores, labels


def _proper(probability: float) -> float:
    if not 0 < probability < 1:
        raise ValueError(f"a prior or probability must lie strictly between 0 and 1, not {probability}")
    return probability


def shipped_calibration(contract: str) -> dict[str, Any] | None:
    """The calibration, as JSON, that comes with this release for a contract, if any: its `source` says how it was measured."""
    shipped = json.loads(Path(__file__).with_name("calibrations.json").read_text(encoding="utf-8"))
    return next((entry for entry in shipped if entry["contract"] == contract), None)
