"""Fit what a model's similarities mean to labelled pairs.

Platt, "Probabilistic Outputs for Support Vector Machines", 1999: a logistic curve over the score. It is fitted as if same and
different were equally frequent: how often they are in a collection, labelled pairs do not say.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.calibration import LOWEST_RATE, Calibration, Thresholds, expit
from tasks.evaluation.verification import best_accuracy_threshold, threshold_at_far

MIN_PAIRS = 10  # of each kind; below it a curve of two parameters says more about the sample than about the model


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
        error = weights * (expit(odds) - targets)
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
