"""Grouping measured on labelled pictures, and kept in MLflow."""

from pathlib import Path

from sqlalchemy import select

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.ray_cluster import device
from infra.settings import Settings
from infra.tracking import track
from models.spec import Role
from tasks.calibration import Calibration, shipped_calibration
from tasks.evaluation.central_face import Progress
from tasks.evaluation.grouping import GroupingReport, embed_labelled, evaluate_grouping, read_labels
from tasks.model_version import ModelVersion
from tasks.recipe import version_for


class NotCalibrated(LookupError):
    """Nothing says from which similarity on two faces are one person."""


def measure_grouping(
    settings: Settings, model: str | None, images: Path, labels: Path | None, on_progress: Progress
) -> tuple[GroupingReport, str]:
    """Evaluate grouping by a version (NAME, NAME@VERSION or NAME@ALIAS; None: what the settings name), as nights group.

    Returns the report and the MLflow run that keeps it.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if there is no such recognition model here.
        UnusableLabels, ImagesMissing: if it cannot be measured on these pictures.
        NotCalibrated: if the version has no thresholds yet.
    """
    embedder = version_for(Role.EMBED, model or settings.embed_model, settings)
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    people, calibration = read_labels(images, labels), _calibration(settings, embedder)
    vectors = embed_labelled(settings, detector, embedder, images, sorted(people), on_progress)
    report = evaluate_grouping(vectors, people, calibration)
    with track(
        settings.mlflow_uri,
        settings.artifacts_folder,
        "grouping",
        f"{embedder.reference} on {images.name}",
        {"model": embedder.reference},
    ) as run:
        facts = {"contract": embedder.contract, "detector": detector.reference, "images": images.name}
        run.params({**facts, "device": device()})
        for found in report.rounds:
            name = f"{found.nights} nights order {found.order}"
            run.metrics({f"{what}/{name}": getattr(found, what) for what in ("precision", "recall", "f")})
        run.text(report.model_dump_json(indent=2), "report.json")
    return report, run.run_id


def _calibration(settings: Settings, embedder: ModelVersion) -> Calibration:
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        kept = session.scalar(select(ModelVersionRow.calibration).where(ModelVersionRow.contract == embedder.contract))
    catalog.close()
    found = kept or shipped_calibration(embedder.contract)
    if found is None:
        raise NotCalibrated(
            f"{embedder.reference} is not calibrated, so nights do not group by it either: 'visage evaluate verification' first"
        )
    return Calibration.model_validate(found)
