"""The gate: is a challenger at least as good as the champion, by the evaluations that are stored of both?

Compared is what was measured on the same pictures: accuracy and TAR at FAR on labelled pairs, and, where fairness was measured
of both, false rejects in the group that fares worst. Worse is what lies beyond the champion's own 95% interval: within it,
nobody can tell the two apart on these pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from infra.evaluations import Evaluation, Evaluations
from tasks.evaluation.fairness import Cell, FairnessReport
from tasks.evaluation.verification import VerificationReport
from tasks.model_version import ModelVersion

NORMAL_95 = 1.96  # standard errors that a 95% interval reaches to each side
REJECTS = "false rejects"
SAME_GROUPS = ("pairs_sha256", "groups_sha256", "images", "detector", "columns", "minimum", "far_target")


@dataclass(frozen=True)
class Compared:
    """One measure of both. `bound`: the end of the champion's 95% interval that the challenger must not fall behind."""

    measure: str
    champion: float
    bound: float
    challenger: float
    higher_is_better: bool = True

    @property
    def worse(self) -> bool:
        return self.challenger < self.bound if self.higher_is_better else self.challenger > self.bound


@dataclass(frozen=True)
class Verdict:
    """What the gate says: `verdict` is "no worse", "worse" or "not evaluated", `reason` why, in one sentence."""

    verdict: str
    reason: str
    compared: tuple[Compared, ...] = ()

    @property
    def passed(self) -> bool:
        return self.verdict == "no worse"


def judge(evaluations: Evaluations, champion: ModelVersion, challenger: ModelVersion) -> Verdict:
    """Compare two recognition models by the latest evaluations of both on the same pairs."""
    both = _on_the_same_pairs(evaluations, champion, challenger)
    if both is None:
        lacking = [v.reference for v in (champion, challenger) if not _verifications(evaluations, v)]
        what = (
            " and ".join(lacking) if lacking else f"{champion.reference} and {challenger.reference} on the same pairs"
        )
        return Verdict(
            "not evaluated",
            f"no evaluation of {what} is stored. 'visage evaluate verification --model NAME@VERSION --images ... --pairs ...' "
            "makes one, or give --images and --pairs with the promotion",
        )
    compared = (*_verification(evaluations, *both), *_worst_group(evaluations, champion, challenger))
    worse = [c for c in compared if c.worse]
    told = "; ".join(
        f"{c.measure} {c.challenger:.4f}, where {champion.reference} has {c.champion:.4f} (95% interval from {c.bound:.4f})"
        for c in (worse or compared)
    )
    on = f"on {both[1].params['pairs']}"
    if worse:
        return Verdict("worse", f"{challenger.reference} is worse than {champion.reference} {on}: {told}", compared)
    return Verdict("no worse", f"{challenger.reference} is no worse than {champion.reference} {on}: {told}", compared)


def _verifications(evaluations: Evaluations, version: ModelVersion) -> list[Evaluation]:
    return evaluations.find("verification", {"contract": version.contract})


def _on_the_same_pairs(
    evaluations: Evaluations, champion: ModelVersion, challenger: ModelVersion
) -> tuple[Evaluation, Evaluation] | None:
    of_champion = _verifications(evaluations, champion)
    for theirs in _verifications(evaluations, challenger):
        for ours in of_champion:
            if _pairs(ours) == _pairs(theirs):
                return ours, theirs
    return None


def _pairs(evaluation: Evaluation) -> tuple[str, str]:
    """What tells pairs apart: the digest of their file; runs of earlier releases know its path only."""
    return evaluation.params["detector"], evaluation.params.get("pairs_sha256", evaluation.params["pairs"])


def _verification(evaluations: Evaluations, ours: Evaluation, theirs: Evaluation) -> Iterator[Compared]:
    champion, challenger = (
        VerificationReport.model_validate_json(evaluations.read(e.run_id, "report.json")) for e in (ours, theirs)
    )
    bound = champion.accuracy - NORMAL_95 * champion.accuracy_standard_error
    yield Compared("accuracy", champion.accuracy, bound, challenger.accuracy)
    for a, b in zip(champion.operating_points, challenger.operating_points, strict=True):
        yield Compared(f"TAR at FAR {a.far_target:.1%}", a.tar, a.tar_low, b.tar)


def _worst_group(evaluations: Evaluations, champion: ModelVersion, challenger: ModelVersion) -> Iterator[Compared]:
    """False rejects where they are most frequent, if fairness was measured of both on the same pairs of the same groups."""
    of_champion = evaluations.find("fairness", {"contract": champion.contract})
    for theirs in evaluations.find("fairness", {"contract": challenger.contract}):
        for ours in of_champion:
            if all(ours.params.get(name) == theirs.params.get(name) for name in SAME_GROUPS):
                worst = [_worst(evaluations, evaluation) for evaluation in (ours, theirs)]
                a, b = worst
                if a is not None and b is not None and a.value is not None and b.value is not None:
                    name = f"{REJECTS} in the worst group ({b.name})"
                    yield Compared(name, a.value, a.value if a.high is None else a.high, b.value, False)
                return


def _worst(evaluations: Evaluations, evaluation: Evaluation) -> Cell | None:
    report = FairnessReport.model_validate_json(evaluations.read(evaluation.run_id, "fairness.json"))
    cells = [c for c in report.cells if c.measure == REJECTS and c.groups and c.value is not None]
    return max(cells, key=lambda cell: cell.value or 0.0, default=None)
