"""The fairness report, kept in MLflow: numbers, plots, and a page that explains them."""

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra.html import templates
from infra.ray_cluster import device
from infra.settings import Settings
from infra.tracking import plain, track
from infra.wheels import sha256
from models.spec import Role
from tasks.evaluation.attributes import opinions_on
from tasks.evaluation.central_face import Progress
from tasks.evaluation.fairness import FairnessReport
from tasks.evaluation.fairness_plot import plot_measure
from tasks.evaluation.fairness_report import Question, evaluate_fairness
from tasks.evaluation.labels import Table, labelled_attributes
from tasks.evaluation.verification import Pairs
from tasks.recipe import version_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Judged:
    """A fairness report, its page as HTML, and the MLflow run that keeps both."""

    report: FairnessReport
    page: str
    tracking_run: str


def measure_fairness(
    settings: Settings, question: Question, recogniser: str | None, describers: list[str], on_progress: Progress
) -> Judged:
    """Answer the question with the versions of these names (none: those that the settings name).

    Raises:
        UnknownModel, NotInstalled, WrongRole: if there is no such model here.
        UnusableLabels, UnusablePairs, ImagesMissing: if it cannot be measured on these pictures.
    """
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    embedder = version_for(Role.EMBED, recogniser or settings.embed_model, settings) if question.pairs else None
    names = (describers or list(settings.describe_models)) if question.labels else []
    versions = [version_for(Role.DESCRIBE, name, settings) for name in dict.fromkeys(names)]
    if question.labels is not None:
        labelled = labelled_attributes(question.labels)
        versions = [version for version in versions if opinions_on(version, labelled)]
    question = replace(question, embedder=embedder, describers=versions)
    report = evaluate_fairness(settings, detector, question, on_progress)
    models = ", ".join(version.reference for version in (*([embedder] if embedder else []), *versions))
    title = f"{models} on {question.images.name}"
    figures = {info.name: plot_measure(report, info) for info in report.measures}
    page = render(report, title, figures)
    with track(settings.mlflow_uri, settings.artifacts_folder, "fairness", title, {"models": models}) as run:
        run.params(
            {
                "images": question.images,
                "detector": detector.reference,
                "device": device(),
                "contract": embedder.contract if embedder else "",
                **_file("groups", question.table),
                **_file("pairs", question.pairs),
                "columns": ", ".join(report.columns),
                "minimum": report.minimum,
                "far_target": question.far_target,
            }
        )
        run.metrics({f"gap/{gap.measure}/{' and '.join(gap.by)}": gap.difference for gap in report.gaps})
        run.text(report.model_dump_json(indent=2), "fairness.json")
        run.text(page, "fairness.html")
        for name, figure in figures.items():
            run.figure(figure, f"{plain(name).replace(' ', '_')}.png")
    return Judged(report, page, run.run_id)


def render(report: FairnessReport, title: str, figures: "dict[str, Figure]") -> str:
    """Write the report as one HTML page that needs nothing beside it."""
    pictures = {name: _data_url(figure) for name, figure in figures.items()}
    return templates(TEMPLATES).get_template("fairness.html").render(report=report, title=title, pictures=pictures)


def _file(what: str, read: Table | Pairs | None) -> dict[str, str]:
    """The file that groups or pairs were read from, as parameters of the run."""
    return {what: str(read.path), f"{what}_sha256": sha256(read.path)} if read else {what: "", f"{what}_sha256": ""}


def _data_url(figure: "Figure") -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
