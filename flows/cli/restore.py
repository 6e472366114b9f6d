"""`visage restore`: restore the faces of a photograph, or of all in a folder, once and without a catalog entry."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from flows.cli.nights import EXIT_WITH_FAILURES
from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.settings import load_settings
from infra.words import count

if TYPE_CHECKING:
    from tasks.restore_photo import PhotoReport


def restore(
    source: Annotated[Path, typer.Argument(metavar="PHOTO_OR_FOLDER", exists=True, help="A photograph, or a folder.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for copies with restored faces.")],
    model: Annotated[
        str | None,
        typer.Option(help="NAME (its champion), NAME@VERSION or NAME@ALIAS; default: what the settings name."),
    ] = None,
    upscale: Annotated[float, typer.Option(min=1, max=4, help="Enlarge the photo by this factor.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Restore small and blurred faces, and say which were not and why. Copies are marked: their detail is invented.

    Exit code 3: done, but some photographs could not be processed.
    """
    from tasks.restore_photo import restore_photos  # noqa: PLC0415 - imports torch

    settings = load_settings()
    if not model and not settings.restore_model:
        raise typer.BadParameter("VISAGE_RESTORE_MODEL names no model: name one", param_hint="--model")
    with Progress(console=errors) as progress:
        task = progress.add_task("restoring", total=None)
        reports = restore_photos(
            settings,
            source,
            out,
            model,
            upscale,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(reports)
    else:
        _show(source, out, reports)
    if any(report.problem for report in reports):
        raise typer.Exit(EXIT_WITH_FAILURES)


def _show(source: Path, out: Path, reports: "Sequence[PhotoReport]") -> None:
    rows = []
    for report in reports:
        if report.problem:
            rows.append([report.photo, "-", "not processed", report.problem])
        for number, face in enumerate(report.faces):
            detail = face.reason
            if face.measured is not None and not face.reason:
                detail = (
                    f"fidelity {face.measured.fidelity:.1f} dB, identity similarity {face.measured.identity_similarity:.2f}, "
                    f"sharpness {face.photo_sharpness:.2f} -> {face.measured.sharpness:.2f}"
                )
            rows.append([report.photo, str(number), face.outcome, detail])
        if not report.faces and not report.problem:
            rows.append([report.photo, "-", "left", "no face was found"])
    print_table(f"Faces in {source}", ["photo", "face", "outcome", "why"], rows)
    counts = Counter(face.outcome for report in reports for face in report.faces)
    written = sum(report.written is not None for report in reports)
    console.print(
        literal(
            f"{count(counts['restored'], 'face')} restored, {counts['rejected']} rejected, {counts['left']} left as they are; "
            f"{written} of {count(len(reports), 'photo')} written to {out}, marked 'synthetic detail'."
        )
    )
