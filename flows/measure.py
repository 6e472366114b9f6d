"""Evaluations that are kept: measured, logged to MLflow, and stored with the model version."""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import update

from infra.catalog.database import Catalog
from infra.catalog.schema import ModelVersion as ModelVersionRow
from infra.settings import Settings
from infra.tracking import track
from tasks.evaluation import Verification, evaluate_verification
from tasks.recipe import current_recipe, enter
from tasks.verification import plot_roc, read_pairs


def measure_verification(
    settings: Settings, images: Path, pairs_file: Path, on_progress: Callable[[int, int], None]
) -> tuple[Verification, str, str]:
    """Evaluate verification with today's champions; returns the result, the model's name and the MLflow run's id."""
    pairs = read_pairs(pairs_file)
    recipe = current_recipe(settings, frozenset())
    result = evaluate_verification(settings, recipe.detector, recipe.embedder, images, pairs, on_progress)
    model = f"{recipe.embedder.name}@{recipe.embedder.version}"
    with track(
        settings.mlflow_uri, settings.artifacts_folder, "verification", f"{model} on {images.name}", {"model": model}
    ) as run:
        run.params(
            {
                "contract": recipe.embedder.contract,
                "detector": f"{recipe.detector.name}@{recipe.detector.version}",
                "images": str(images),
                "pairs": str(pairs_file),
            }
        )
        report = result.report
        run.metrics(
            {
                "accuracy": report.accuracy,
                "accuracy_standard_error": report.accuracy_standard_error,
                "eer": report.eer,
                "auc": report.auc,
                "images_without_face": len(result.without_face),
                **{f"tar_at_far_{p.far_target:g}": p.tar for p in report.operating_points},
            }
        )
        run.figure(plot_roc(report), "roc.png")
        run.text(report.model_dump_json(indent=2), "report.json")
        run.text(result.calibration.model_dump_json(indent=2), "calibration.json")
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        contract = enter(session, recipe)
        session.execute(
            update(ModelVersionRow)
            .where(ModelVersionRow.id == contract.embedder_id)
            .values(calibration=result.calibration.model_dump(mode="json"))
        )
    catalog.close()
    return result, model, run.run_id
