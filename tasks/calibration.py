"""What a similarity means: from a model's cosine to the probability that two faces are one person.

Labelled pairs say nothing about how often two faces of *your* collection are one person, so a calibration stands as if same
and different were equally frequent, and whoever knows better states the prior. `tasks.evaluation.calibration` fits one.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt

from infra.catalog.tables.schema import ModelVersion

LOWEST_RATE = 0.001

Scores = TypeVar("Scores", float, NDArray[np.float64])


def expit(odds: Any) -> Any:
    """The probability that log-odds stand for."""
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
        probability: Scores = expit(self.slope * similarity + self.offset + _logit(_proper(prior)))
        return probability

    def similarity(self, probability: float, prior: float = 0.5) -> float:
        """The similarity that `probability` turns into this probability, both strictly between 0 and 1."""
        return float((_logit(_proper(probability)) - _logit(_proper(prior)) - self.offset) / self.slope)


def calibration_of(version: ModelVersion) -> Calibration | None:
    """How to read a version's similarities; None if it is not calibrated."""
    return None if version.calibration is None else Calibration.model_validate(version.calibration)


def shipped_calibration(contract: str) -> dict[str, Any] | None:
    """The calibration, as JSON, that comes with this release for a contract, if any: its `source` says how it was measured."""
    shipped = json.loads(Path(__file__).with_name("calibrations.json").read_text(encoding="utf-8"))
    return next((entry for entry in shipped if entry["contract"] == contract), None)


def _proper(probability: float) -> float:
    if not 0 < probability < 1:
        raise ValueError(f"a prior or probability must lie strictly between 0 and 1, not {probability}")
    return probability
