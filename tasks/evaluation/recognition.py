"""Evaluate: models of the recognition role on labelled pairs of photographs.

Pictures are decoded and their faces found once, however many models are judged: each aligns and embeds the same faces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from tasks.calibration import Calibration
from tasks.evaluation.calibration import fit
from tasks.evaluation.central_face import Progress, Recogniser, central_faces
from tasks.evaluation.verification import Pairs, VerificationReport, evaluate, pair_similarities
from tasks.model_version import ModelVersion


@dataclass(frozen=True)
class Verification:
    """What one model made of the pairs. `similarities` (P,) are NaN, and count as errors, where no face was found."""

    model: ModelVersion
    report: VerificationReport
    similarities: NDArray[np.float64]
    images: int
    without_face: tuple[str, ...]


def evaluate_verification(
    settings: Settings,
    detector: ModelVersion,
    embedders: Sequence[ModelVersion],
    images: Path,
    pairs: Pairs,
    on_progress: Progress = lambda done, total: None,
) -> list[Verification]:
    """Follow LFW's protocol on `pairs` of pictures in a tar file or folder: the same detect, align and embed as every night,
    on a GPU where there is one.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        UnusablePairs: if no verification can be measured on them.
    """
    names = sorted({*pairs.a, *pairs.b})
    judged = [Recogniser(version) for version in embedders]
    templates = [judge.template for judge in judged]
    for faces in central_faces(settings, detector, images, names, templates, on_progress):
        for judge in judged:
            judge.embed(faces)
    return [_verdict(judge, pairs, names) for judge in judged]


def calibrate(verification: Verification, pairs: Pairs, images: Path) -> Calibration:
    """Fit what the model's similarities mean to the pairs in which both faces were found.

    Raises:
        ValueError: if they are too few, or do not rise with sameness.
    """
    there = np.isfinite(verification.similarities)
    source = f"{images.name}, {int(there.sum())} pairs of folds {', '.join(str(f) for f in np.unique(pairs.fold))}"
    return fit(verification.similarities[there], pairs.same[there], contract=verification.model.contract, source=source)


def _verdict(judge: Recogniser, pairs: Pairs, names: Sequence[str]) -> Verification:
    similarities = pair_similarities(pairs, judge.embeddings)
    report = evaluate(similarities, pairs.same, pairs.fold, nan_is_missing_face=True)
    without_face = tuple(name for name in names if name not in judge.embeddings)
    return Verification(judge.version, report, similarities, len(names), without_face)
