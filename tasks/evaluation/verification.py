"""Face verification as LFW measures it: is this pair of photos one person or two?

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", UMass TR 07-49, 2007: View 2, folds of pairs, each judged
with the threshold that is best on the other folds. Beside accuracy, which hides what a collection suffers from, the report
states the true accept rate (TAR) where the false accept rate (FAR) stays at or below 1% and 0.1%, with its uncertainty.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR_TARGETS = (0.01, 0.001)
COLUMNS = ("fold", "a", "b", "same")
ROC_POINTS = 200
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 1907  # of the technical report's number; a report made twice is the same report


class UnusablePairs(ValueError):
    """Pairs, or their similarities, that no verification can be measured on. The message says what is wrong, and where."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images by name: `fold` (P,) int64, `same` (P,) bool, and the file that they are read from, for messages."""

    fold: NDArray[np.int64]
    a: tuple[str, ...]
    b: tuple[str, ...]
    same: NDArray[np.bool_]
    path: Path = Path("pairs")

    def __len__(self) -> int:
        return len(self.a)


class FoldAccuracy(BaseModel):
    """One fold, judged with the threshold that is best on all other folds."""

    model_config = ConfigDict(frozen=True)

    fold: int
    pairs: int
    threshold: float
    accuracy: float


class OperatingPoint(BaseModel):
    """What is recognised at a bounded false accept rate. A pair is accepted when similarity >= threshold.

    `threshold` is the lowest at which FAR over all pairs does not exceed `far_target`; nothing is interpolated, so `far`,
    the rate really reached, may lie below. `false_accepts` is the number of impostor pairs that the figure stands on.
    `tar_low` to `tar_high` is a 95% bootstrap interval over pairs, uncertainty of the threshold included.
    """

    model_config = ConfigDict(frozen=True)

    far_target: float
    threshold: float
    far: float
    false_accepts: int
    tar: float
    tar_low: float
    tar_high: float


class VerificationReport(BaseModel):
    """Result of `evaluate`. Rates are 0..1; `roc_*` are parallel, from strict to lenient, thinned to about 200 points."""

    model_config = ConfigDict(frozen=True)

    pairs: int
    same_pairs: int
    missing_pairs: int
    accuracy: float
    accuracy_standard_error: float
    folds: tuple[FoldAccuracy, ...]
    operating_points: tuple[OperatingPoint, ...]
    eer: float
    auc: float
    roc_far: tuple[float, ...]
    roc_tar: tuple[float, ...]
    roc_thresholds: tuple[float, ...]


def read_pairs(path: Path) -> Pairs:
    """Read a CSV with the columns fold, a, b, same: an integer, two image names, 1 (one person) or 0 (two).

    Raises:
        UnusablePairs: naming file and line of what is not so, or saying that there are no pairs.
    """
    rows: list[tuple[int, str, str, bool]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise UnusablePairs(f"{path}, line 1: no column {', '.join(absent)}; needed are {', '.join(COLUMNS)}")
            for row in reader:
                try:
                    rows.append(_pair(row))
                except UnusablePairs as error:
                    raise UnusablePairs(f"{path}, line {reader.line_num}: {error}") from None
    except UnicodeDecodeError as error:
        raise UnusablePairs(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); is it a CSV file?"
        ) from None
    if not rows:
        raise UnusablePairs(f"{path}: no pairs, only a header")
    fold, a, b, same = zip(*rows, strict=True)
    return Pairs(np.array(fold, dtype=np.int64), a, b, np.array(same, dtype=bool), path)


def _pair(row: Mapping[str, str | None]) -> tuple[int, str, str, bool]:
    fold, a, b, same = ((row[column] or "").strip() for column in COLUMNS)
    if not fold.removeprefix("-").isdecimal():
        raise UnusablePairs(f"fold is {fold!r}, not an integer")
    if not a or not b:
        raise UnusablePairs("an image name is empty")
    if a == b:
        raise UnusablePairs(f"{a!r} is paired with itself")
    if same not in ("0", "1"):
        raise UnusablePairs(f"same is {same!r}; it must be 1 (one person) or 0 (two people)")
    return int(fold), a, b, same == "1"


def pair_similarities(pairs: Pairs, embeddings: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return cosine similarities (P,) of the pairs' unit embeddings; NaN where an image has none, i.e. no face was found."""
    missing = next((np.full_like(vector, np.nan) for vector in embeddings.values()), np.full(1, np.nan, np.float32))
    a = np.stack([embeddings.get(name, missing) for name in pairs.a])
    b = np.stack([embeddings.get(name, missing) for name in pairs.b])
    return np.einsum("pd,pd->p", a.astype(np.float64), b.astype(np.float64))


def evaluate(
    similarities: ArrayLike, same: ArrayLike, folds: ArrayLike, *, nan_is_missing_face: bool = False
) -> VerificationReport:
    """Judge similarities (P,) of pairs against `same` (P,) bool with the protocol of `folds` (P,) int.

    With `nan_is_missing_face`, a pair of similarity NaN has an image in which no face was found. It counts as wrong for
    accuracy, whatever its label, and as rejected for TAR; it leaves the denominator of FAR, so that an undetected face
    never makes a system look safer. Each fold counts the same in the mean accuracy; the standard error is that of LFW
    (sample deviation over the square root of the number of folds). TAR, EER and AUC are taken over all pairs together.

    Raises:
        UnusablePairs: fewer than two folds, arrays that do not match, a class missing (overall or outside a fold), infinite
            similarities, or NaN that was not declared.
    """
    scores, labels, groups = _checked(similarities, same, folds, nan_is_missing_face)
    missing = np.isnan(scores)
    results = tuple(_judge_fold(scores, labels, groups == fold, int(fold)) for fold in np.unique(groups))
    accuracies = np.array([result.accuracy for result in results])

    genuine = np.sort(np.where(missing, -np.inf, scores)[labels])
    impostor = np.sort(scores[~labels & ~missing])
    thresholds = _descending_thresholds(scores[~missing])
    far, tar = _accepted(impostor, thresholds), _accepted(genuine, thresholds)
    kept = _thin(far)
    return VerificationReport(
        pairs=len(scores),
        same_pairs=int(labels.sum()),
        missing_pairs=int(missing.sum()),
        accuracy=float(accuracies.mean()),
        accuracy_standard_error=float(accuracies.std(ddof=1) / np.sqrt(len(accuracies))),
        folds=results,
        operating_points=tuple(_operating_point(genuine, impostor, target) for target in FAR_TARGETS),
        eer=_equal_error_rate(far, tar),
        auc=float(np.trapezoid(tar, far)),
        roc_far=tuple(far[kept].tolist()),
        roc_tar=tuple(tar[kept].tolist()),
        roc_thresholds=tuple(thresholds[kept].tolist()),
    )


def threshold_at_far(impostor: NDArray[np.float64], far: float) -> float:
    """Return the lowest threshold at which at most the fraction `far` of impostor similarities (N,) is accepted (>=)."""
    allowed = int(np.floor(far * len(impostor) + 1e-9))  # 0.001 * 3000 must be 3 whatever the rounding
    first_refused = np.partition(impostor, len(impostor) - 1 - allowed)[len(impostor) - 1 - allowed]
    return float(np.nextafter(first_refused, np.inf))


def best_accuracy_threshold(similarities: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Return the threshold with the most right decisions on (P,) pairs; the middle one where several are as good."""
    thresholds = _descending_thresholds(similarities)
    genuine, impostor = np.sort(similarities[same]), np.sort(similarities[~same])
    right = _count_accepted(genuine, thresholds) - _count_accepted(impostor, thresholds)
    best = np.flatnonzero(right == right.max())
    chosen = best[len(best) // 2]
    accepted, refused = thresholds[chosen], thresholds[min(chosen + 1, len(thresholds) - 1)]
    halfway = (accepted + refused) / 2
    return float(halfway if halfway > refused else accepted)  # neighbouring floats have nothing between them


def plot_roc(report: VerificationReport) -> "Figure":
    """Draw TAR over FAR on a logarithmic axis, with the operating points and their 95% intervals."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a third of a second that no night should pay

    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    floor = 1 / max(1, report.pairs - report.same_pairs)  # one false accept: nothing is known below
    far, tar = np.array(report.roc_far), np.array(report.roc_tar)
    axes.plot(np.maximum(far, floor), tar, drawstyle="steps-post", color="#1f4e79", label=f"AUC {report.auc:.4f}")
    for point, color in zip(report.operating_points, ("#c0504d", "#e08a1e"), strict=True):
        interval = [[point.tar - point.tar_low], [point.tar_high - point.tar]]
        label = f"TAR {point.tar:.3f} at FAR {point.far_target:.1%}"
        position = max(point.far, floor)
        axes.errorbar([position], [point.tar], np.maximum(interval, 0), fmt="o", color=color, capsize=3, label=label)
    axes.set_xscale("log")
    axes.set(xlim=(floor, 1), ylim=(min(0.9, tar[far >= floor].min(initial=1.0)) - 0.02, 1.003))
    axes.set(xlabel="False accept rate", ylabel="True accept rate")
    accuracy = f"{report.accuracy:.4f} ± {report.accuracy_standard_error:.4f}"
    axes.set_title(f"Verification: accuracy {accuracy}, {report.pairs:,} pairs in {len(report.folds)} folds")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right")
    return figure


def _checked(
    similarities: ArrayLike, same: ArrayLike, folds: ArrayLike, nan_is_missing_face: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    scores = np.asarray(similarities, dtype=np.float64)
    labels, groups = np.asarray(same), np.asarray(folds)
    if scores.ndim != 1 or labels.shape != scores.shape or groups.shape != scores.shape:
        raise UnusablePairs(
            f"similarities {scores.shape}, same {labels.shape} and folds {groups.shape} must match: (P,)"
        )
    if not np.isin(labels, (0, 1)).all():
        raise UnusablePairs("same must be boolean")
    labels = labels.astype(bool)
    known = ~np.isnan(scores)
    if not known.all() and not nan_is_missing_face:
        raise UnusablePairs(
            f"{(~known).sum()} similarities are NaN; say nan_is_missing_face if no face was found there"
        )
    if np.isinf(scores).any():
        raise UnusablePairs(f"{np.isinf(scores).sum()} similarities are infinite")
    distinct = np.unique(groups)
    if len(distinct) < 2:
        raise UnusablePairs(f"{len(distinct)} fold: a threshold must come from other folds, so at least 2 are needed")
    for fold in distinct:
        rest = labels[known & (groups != fold)]
        if rest.all() or not rest.any():
            what = "no pair" if not rest.size else f"only pairs of {'one person' if rest.all() else 'two people'}"
            raise UnusablePairs(f"outside fold {fold} there is {what} with a similarity, so no threshold can be chosen")
    return scores, labels, groups


def _judge_fold(
    scores: NDArray[np.float64], same: NDArray[np.bool_], inside: NDArray[np.bool_], fold: int
) -> FoldAccuracy:
    training = ~inside & ~np.isnan(scores)
    threshold = best_accuracy_threshold(scores[training], same[training])
    right = ((scores >= threshold) == same) & ~np.isnan(scores)
    return FoldAccuracy(fold=fold, pairs=int(inside.sum()), threshold=threshold, accuracy=float(right[inside].mean()))


def _operating_point(genuine: NDArray[np.float64], impostor: NDArray[np.float64], target: float) -> OperatingPoint:
    threshold = threshold_at_far(impostor, target)
    false_accepts = int(_count_accepted(impostor, np.array([threshold]))[0])
    low, high = _bootstrap_interval(genuine, impostor, target)
    return OperatingPoint(
        far_target=target,
        threshold=threshold,
        far=false_accepts / len(impostor),
        false_accepts=false_accepts,
        tar=float(_accepted(genuine, np.array([threshold]))[0]),
        tar_low=low,
        tar_high=high,
    )


def _bootstrap_interval(
    genuine: NDArray[np.float64], impostor: NDArray[np.float64], target: float
) -> tuple[float, float]:
    """Draw from the bootstrap distribution of TAR at FAR without making the resamples.

    The k-th largest of n draws from a sorted list lies at a place distributed as n * Beta(k, n + 1 - k), and the number of
    accepted among m drawn genuine pairs is binomial; both are exact.
    """
    random = np.random.default_rng(BOOTSTRAP_SEED)
    n, m = len(impostor), len(genuine)
    allowed = int(np.floor(target * n + 1e-9))
    places = np.floor(n * random.beta(allowed + 1, n - allowed, BOOTSTRAP_DRAWS)).astype(np.int64).clip(0, n - 1)
    thresholds = np.nextafter(impostor[n - 1 - places], np.inf)
    rates = random.binomial(m, _accepted(genuine, thresholds)) / m
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def _equal_error_rate(far: NDArray[np.float64], tar: NDArray[np.float64]) -> float:
    """Where FAR and 1 - TAR cross, on the straight line between the two ROC points around it."""
    gap = far - (1 - tar)
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(far[before] + share * (far[after] - far[before]))


def _descending_thresholds(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every threshold that decides differently: one that refuses all, then each distinct similarity."""
    distinct = np.unique(similarities)[::-1]
    return np.concatenate([np.nextafter(distinct[:1], np.inf), distinct])


def _count_accepted(ascending: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    return len(ascending) - np.searchsorted(ascending, thresholds, side="left")


def _accepted(ascending: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    return _count_accepted(ascending, thresholds) / len(ascending)


def _thin(far: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of about ROC_POINTS points, evenly spaced in log FAR, always with both ends."""
    smallest = far[far > 0][0]
    wanted = np.concatenate([[0.0], np.geomspace(smallest, 1.0, ROC_POINTS - 2)])
    last_not_above = np.searchsorted(far, wanted * (1 + 1e-12), side="right") - 1
    return np.unique(np.concatenate([[0], last_not_above, [len(far) - 1]]))
