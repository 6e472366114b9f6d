"""Evaluations that are kept: measured, logged to MLflow, and what they calibrate stored with the model version."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.ray_cluster import device
from infra.settings import Settings
from infra.tracking import Run, track
from infra.wheels import sha256
from models.spec import Role
from tasks.calibration import Calibration, calibration_of
from tasks.evaluation.central_face import Progress
from tasks.evaluation.comparison import Comparison, columns, compare, plot_accuracy_over_ms, plot_rocs
from tasks.evaluation.recognition import Verification, calibrate, evaluate_verification
from tasks.evaluation.verification import Pairs, VerificationReport, plot_roc, read_pairs
from tasks.model_version import ModelVersion
from tasks.recipe import enter_versions, version_for


@dataclass(frozen=True)
class Measured:
    """An evaluation and the MLflow run that keeps it, and what it calibrated.

    `not_calibrated` says why, if the model could not be calibrated; `stays`, if it has a calibration that was not replaced.
    """

    verification: Verification
    tracking_run: str
    calibration: Calibration | None
    not_calibrated: str
    stays: str


def measure_verification(
    settings: Settings,
    model: str | None,
    images: Path,
    pairs_file: Path,
    on_progress: Progress,
    recalibrate: bool = False,
) -> Measured:
    """Evaluate a version (NAME, NAME@VERSION or NAME@ALIAS; None: what the settings name) and calibrate it.

    A calibration on more pairs of two people stays, unless `recalibrate` is said.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if there is no such recognition model here.
        UnusablePairs, ImagesMissing: if it cannot be measured on these pairs.
    """
    pairs = read_pairs(pairs_file)
    embedder = version_for(Role.EMBED, model or settings.embed_model, settings)
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    [verification] = evaluate_verification(settings, detector, [embedder], images, pairs, on_progress)
    calibration, problem = _calibration(verification, pairs, images)
    with track(
        settings.mlflow_uri,
        settings.artifacts_folder,
        "verification",
        f"{embedder.reference} on {images.name}",
        {"model": embedder.reference},
    ) as run:
        run.params({"contract": embedder.contract, **_circumstances(detector, images, pairs_file)})
        run.metrics({**_metrics(verification.report), "images_without_face": len(verification.without_face)})
        run.figure(plot_roc(verification.report), "roc.png")
        run.text(verification.report.model_dump_json(indent=2), "report.json")
        if calibration is not None:
            run.text(calibration.model_dump_json(indent=2), "calibration.json")
    stays = "" if calibration is None else _keep(settings, embedder, calibration, recalibrate)
    return Measured(verification, run.run_id, calibration, problem, stays)


def measure_comparison(
    settings: Settings,
    models: Sequence[str],
    images: Path,
    pairs_file: Path,
    budget_ms: int | None,
    on_progress: Progress,
) -> tuple[Comparison, str]:
    """Compare versions (NAME, NAME@VERSION or NAME@ALIAS) on the same faces; returns also the MLflow run that keeps it.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if one is no recognition model that is here.
        UnusablePairs, ImagesMissing: if they cannot be measured on these pairs.
    """
    pairs = read_pairs(pairs_file)
    embedders = list(dict.fromkeys(version_for(Role.EMBED, model, settings) for model in models))
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    comparison = compare(settings, detector, embedders, images, pairs, budget_ms, on_progress)
    names = ", ".join(row.model for row in comparison.rows)
    with track(
        settings.mlflow_uri, settings.artifacts_folder, "comparison", f"{names} on {images.name}", {"models": names}
    ) as run:
        run.params({**_circumstances(detector, images, pairs_file), "times": comparison.how})
        _log_rows(run, comparison)
        run.figure(plot_rocs(comparison), "roc.png")
        run.figure(plot_accuracy_over_ms(comparison), "accuracy_over_ms.png")
    return comparison, run.run_id


def _log_rows(run: Run, comparison: Comparison) -> None:
    run.table(columns(comparison), "comparison.json")
    for row in comparison.rows:
        numbers = {name: value for name, value in asdict(row).items() if isinstance(value, int | float)}
        run.metrics({f"{name}/{row.model}": value for name, value in numbers.items()})


def _circumstances(detector: ModelVersion, images: Path, pairs_file: Path) -> dict[str, str]:
    return {
        "detector": detector.reference,
        "device": device(),
        "images": str(images),
        "pairs": str(pairs_file),
        "pairs_sha256": sha256(pairs_file),
    }


def _metrics(report: VerificationReport) -> dict[str, float]:
    return {
        "accuracy": report.accuracy,
        "accuracy_standard_error": report.accuracy_standard_error,
        "eer": report.eer,
        "auc": report.auc,
        **{f"tar_at_far_{p.far_target:g}": p.tar for p in report.operating_points},
    }


def _calibration(verification: Verification, pairs: Pairs, images: Path) -> tuple[Calibration | None, str]:
    try:
        return calibrate(verification, pairs, images), ""
    except ValueError as error:
        return None, str(error)


def _keep(settings: Settings, embedder: ModelVersion, calibration: Calibration, recalibrate: bool) -> str:
    """Store a calibration with the version, or tell why the one that is there stays."""
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        row = session.get_one(ModelVersionRow, enter_versions(session, [embedder])[embedder.contract])
        before = calibration_of(row)
        replaces = recalibrate or before is None or before.different_pairs <= calibration.different_pairs
        if replaces:
            row.calibration = calibration.model_dump(mode="json")
    catalog.close()
    if replaces or before is None:
        return ""
    return (
        f"{embedder.reference} stays calibrated on {before.different_pairs} pairs of two people ({before.source}): the "
        f"{calibration.different_pairs} of this evaluation are fewer. --recalibrate takes them all the same."
    )
