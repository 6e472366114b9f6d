"""`visage bench`: how fast this machine is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import Json, console, errors, plain, print_json, print_table
from infra.settings import load_settings
from infra.words import count


def bench(
    photographs: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of photographs of yours.")],
    limit: Annotated[int, typer.Option(min=1, help="Measure on an even sample of so many.")] = 200,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Write bench.json and bench.png here.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the nightly job on photographs of yours: whole, by stage, against what its stages and its models take alone.

    Whole pictures are held in memory meanwhile. Everything happens in this process and in a temporary catalog; yours stays as
    it is. For a figure that can be trusted, let nothing else be at work on the machine.
    """
    from flows.bench import bench as measure  # noqa: PLC0415 - imports torch
    from flows.bench import environment_note, plot  # noqa: PLC0415

    result = measure(load_settings(), photographs, limit, lambda step: errors.print(f"{step} ..."))
    facts = {
        **vars(result),
        "limit": result.limit,
        "ratio": result.ratio,
        "ratio_to_forwards": result.ratio_to_forwards,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench.json").write_text(json.dumps(plain(facts), indent=2), encoding="utf-8")
        plot(result).savefig(out / "bench.png")
    if as_json:
        print_json(facts)
        return
    rows = [
        [name, seconds, 1000 * seconds / result.photographs, result.alone_of(name)]
        for name, seconds in sorted(result.stages.items(), key=lambda stage: -stage[1])
    ]
    rows += [[f"{name}, forwards only", None, None, value] for name, value in result.forwards.items()]
    print_table(
        f"{result.photographs:,} of {count(result.found, 'photograph')} with {count(result.faces, 'face')} "
        f"({result.restored:,} restored) on {result.machine}, "
        f"{result.processors} processors",
        ["stage", "seconds", "ms a photograph", "seconds alone"],
        [[_rounded(value) for value in row] for row in rows],
    )
    console.print(
        f"{result.photographs / result.seconds:.1f} photographs a second; {result.seconds:.1f} s, {result.ratio:.2f} times "
        f"the {result.limit:.1f} s that the stages take alone, {result.ratio_to_forwards:.2f} times the models' forwards. "
        f"Loading the models: {result.loading:.1f} s. "
        f"{result.cpu_share:.0%} of the processors used, "
        f"{result.peak_bytes / 2**20:,.0f} MB at the peak; {environment_note()}.",
        soft_wrap=True,
    )


def _rounded(value: object) -> object:
    return round(value, 2) if isinstance(value, float) else value
