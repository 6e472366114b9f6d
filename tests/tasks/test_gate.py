"""The gate compares what was measured on the same pairs, and on nothing else."""

from pathlib import Path

import numpy as np
import pytest

from infra.evaluations import Evaluations
from infra.tracking import track
from tasks.evaluation.fairness import Cell, FairnessReport
from tasks.evaluation.verification import evaluate
from tasks.model_version import ModelVersion
from tasks.versioning.gate import REJECTS, Verdict, judge
from tests.tasks.training_program import TINY

OLD, NEW = (ModelVersion("tiny", n, f"{n}" * 64, Path(), TINY) for n in (1, 2))
PAIRS = {"pairs": "pairs.csv", "pairs_sha256": "1", "detector": "mtcnn@1", "images": "faces"}
GROUPS = {"groups": "groups.csv", "groups_sha256": "1", "columns": "age", "minimum": "30", "far_target": "0.01"}


def keep(uri: str, kind: str, model: ModelVersion, params: dict[str, str], file: str, text: str) -> None:
    artifacts = Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
    with track(uri, artifacts, kind, model.reference, {"models": model.reference}) as run:
        run.params({"contract": model.contract, **params})
        run.text(text, file)


def judged(uri: str, champion_on: dict[str, str], challenger_on: dict[str, str]) -> Verdict:
    """The verdict on two models that verify equally well, of which the second rejects more in one group."""
    same = np.arange(100) % 2 == 0
    verified = evaluate(np.where(same, 0.8, 0.2), same, np.arange(100) // 50).model_dump_json()
    for model, rejects, changed in ((OLD, 0.02, champion_on), (NEW, 0.2, challenger_on)):
        cell = Cell(measure=REJECTS, groups={"age": "old"}, of=100, value=rejects, low=0.0, high=rejects + 0.03)
        report = FairnessReport(minimum=30, columns=("age",), measures=(), cells=(cell,), gaps=(), notes=())
        keep(uri, "verification", model, PAIRS, "report.json", verified)
        keep(uri, "fairness", model, {**PAIRS, **GROUPS, **changed}, "fairness.json", report.model_dump_json())
    return judge(Evaluations(uri), OLD, NEW)


def test_more_false_rejects_in_the_worst_group_are_worse(uri: str) -> None:
    verdict = judged(uri, {}, {"groups": "a copy.csv", "pairs": "a copy.csv"})
    assert verdict.verdict == "worse"
    assert "false rejects in the worst group (age old) 0.2000, where tiny@1 has 0.0200" in verdict.reason


@pytest.mark.parametrize("other", ["pairs_sha256", "groups_sha256", "detector"])
def test_fairness_on_other_pairs_groups_or_faces_is_not_compared(uri: str, other: str) -> None:
    assert judged(uri, {}, {other: "another"}).verdict == "no worse"
