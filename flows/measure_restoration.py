"""Evaluations of restorers, kept in MLflow; what follows from them is kept with each restorer's version."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from infra.ray_cluster import device
from infra.registry import Registry
from infra.settings import Settings
from infra.tracking import track
from models import table
from models.restoration.st_lpips import ST_LPIPS
from models.spec import Role
from tasks.embedding_decision import keep
from tasks.evaluation.central_face import Progress
from tasks.evaluation.restoration import (
    RestorationEvaluation,
    Row,
    columns,
    decision,
    evaluate_restoration,
)
from tasks.evaluation.verification import read_pairs
from tasks.model_version import ModelVersion
from tasks.recipe import version_for
from tasks.restore_photo import least_similarity


def measure_restoration(
    settings: Settings, models: Sequence[str], images: Path, pairs_file: Path, count: int, on_progress: Progress
) -> tuple[RestorationEvaluation, str]:
    """Evaluate restorers (NAME, NAME@VERSION or NAME@ALIAS; none: every registered version), and decide what is embedded.

    Returns also the MLflow run that keeps tables, plots and pictures.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if one of the models at work cannot be had.
        UnusablePairs, ImagesMissing: if it cannot be measured on these pairs.
    """
    pairs = read_pairs(pairs_file)
    restorers = list(dict.fromkeys(version_for(Role.RESTORE, m, settings) for m in models or registered(settings)))
    embedder = version_for(Role.EMBED, settings.embed_model, settings)
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    perceptual = version_for(Role.COMPARE, ST_LPIPS.name, settings)
    least = least_similarity(settings, embedder.contract)
    evaluation = evaluate_restoration(
        settings, detector, embedder, perceptual, restorers, images, pairs, count, least, on_progress
    )
    names = ", ".join(version.reference for version in restorers)
    with track(
        settings.mlflow_uri, settings.artifacts_folder, "restoration", f"{names} on {images.name}", {"models": names}
    ) as run:
        facts = {"images": images, "pairs": pairs_file, "pairs_of_each_kind": count, "perceptual": perceptual.reference}
        at_work = {"detector": detector.reference, "embedder": f"{embedder.reference} {embedder.contract}"}
        run.params({**facts, **at_work, "device": device()})
        run.table(columns(evaluation.rows), "rows.json")
        for name in ("psnr", "ssim", "perceptual", "identity", "gain", "accuracy"):
            run.metrics({f"{name}/{row.method}/{row.size}px": getattr(row, name) for row in evaluation.rows})
        run.figure(plot(evaluation.rows), "by_size.png")
        run.bytes(_png(evaluation.pictures), "faces.png")
        run.text(evaluation.legend, "faces.txt")
    _keep(settings, embedder, restorers, evaluation, run.run_id)
    return evaluation, run.run_id


def registered(settings: Settings) -> list[str]:
    """Every version of every restorer in the registry, as NAME@VERSION."""
    return [
        f"{found.name}@{found.version}"
        for found in Registry(settings.mlflow_uri).versions()
        if found.name in table.MODELS and table.MODELS[found.name].role is Role.RESTORE
    ]


def plot(rows: Sequence[Row]) -> Figure:
    """Draw each measure over the size of faces, a line for each method."""
    measures = {
        "psnr": "PSNR in dB",
        "perceptual": "ST-LPIPS (less is better)",
        "identity": "Identity similarity to the clean face",
        "accuracy": "Verification accuracy",
    }
    figure = Figure(figsize=(10, 7.5), dpi=120, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, measures.items(), strict=True):
        for method in dict.fromkeys(row.method for row in rows):
            own = [row for row in rows if row.method == method]
            axes.plot([row.size for row in own], [getattr(row, name) for row in own], marker="o", label=method)
        axes.set(xlabel="px between the eyes", ylabel=label)
        axes.grid(True, alpha=0.25)
    figure.axes[0].legend(loc="best", fontsize=8)
    return figure


def _keep(
    settings: Settings,
    embedder: ModelVersion,
    restorers: Sequence[ModelVersion],
    evaluation: RestorationEvaluation,
    tracking_run: str,
) -> None:
    for restorer in restorers:
        sizes = evaluation.decisions[restorer.reference]
        keep(settings.mlflow_uri, restorer, decision(embedder, sizes, tracking_run))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
