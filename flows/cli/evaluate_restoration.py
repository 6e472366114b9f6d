"""`visage evaluate restoration`: restorers on degraded faces, and whether what they make is embedded."""

from typing import Annotated

import typer

from flows.cli.evaluate import REFERENCE, Images, PairsFile, progress
from flows.cli.output import Json, console, literal, print_json, print_table
from infra.settings import load_settings


def restoration(
    images: Images,
    pairs: PairsFile,
    model: Annotated[
        list[str] | None, typer.Option(help=f"{REFERENCE}; several if given so; default: every registered version.")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Pairs of one person, and as many of two, to take at most.")] = 32,
    as_json: Json = False,
) -> None:
    """Degrade faces, restore them, compare; decide for each version and size whether restored faces are embedded."""
    from flows.measure_restoration import measure_restoration  # noqa: PLC0415 - imports torch

    with progress("restoring") as on_progress:
        evaluation, run = measure_restoration(load_settings(), model or (), images, pairs, count, on_progress)
    if as_json:
        decisions = {name: [size.model_dump() for size in sizes] for name, sizes in evaluation.decisions.items()}
        print_json({"tracking_run": run, "rows": evaluation.rows, "decisions": decisions})
        return
    names = ["eyes px", "method", "faces", "accepted", "PSNR", "SSIM", "ST-LPIPS", "identity", "gain", "accuracy"]
    rows = [
        [
            row.size,
            row.method,
            row.faces,
            f"{row.accepted:.0%}",
            f"{row.psnr:.2f}",
            row.ssim,
            f"{row.perceptual:.4f}",
            f"{row.identity:.4f}",
            f"{row.gain:+.4f} (>= {row.gain_low:+.4f})",
            row.accuracy,
        ]
        for row in evaluation.rows
    ]
    print_table(f"Restoration of degraded faces of {images.name}", names, rows)
    for name, sizes in evaluation.decisions.items():
        for size in sizes:
            verdict = "are embedded" if size.embed else "are not embedded: the photographed face is"
            console.print(
                literal(
                    f"{name}, eyes {size.low:.0f} to {size.high:.0f} px apart: restored faces {verdict} ({size.reason})."
                )
            )
    console.print(f"Written to MLflow as run {run}, with plots and pictures.")
