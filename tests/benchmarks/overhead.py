"""What the whole job costs beyond its work: both engines against the bare sums of its stages and of its models' forwards."""

from pathlib import Path
from statistics import median
from typing import Any

import torch

from flows.night import discover_images, night
from infra.settings import Settings
from tasks.evaluation.stage_limits import Forward, Stages, forwards, loading_seconds
from tasks.job import Job
from tasks.pipeline import thread_count
from tests.benchmarks import photo_sets
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, seconds, shares
from tests.benchmarks.workplace import COLLECTION, Ran, make_home, run, workplace

GOAL = 1.15
SERIAL = ("detect", "align", "assess", "restore", "embed", "describe")  # reading and decoding run beside them
WITHOUT_RESTORER = {"restore_model": ""}


def measure(photographs: int = 63, crops: int = 200, many: int = 400, rounds: int = 3) -> dict[str, Any]:
    """Compare on photographs, and on small crops, where the models cost least; then the two engines on many photographs."""
    with workplace() as folder:
        some = photo_sets.photographs(folder / "photographs", photographs)
        small = photo_sets.crops(folder / "crops", crops)
        cases = [
            against_models(folder, f"{photographs} photographs", some, rounds, {}),
            against_models(folder, f"{photographs} photographs, no restoration", some, rounds, WITHOUT_RESTORER),
            against_models(folder, f"{crops} crops, no restoration", small, rounds, WITHOUT_RESTORER),
        ]
        return {"cases": cases, "engines": engines(folder, many)}


def against_models(folder: Path, name: str, photos: Path, rounds: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Run job, bare stages and bare forwards by turns in this process; the ratios are the rounds' medians."""
    settings = make_home(folder, f"{name} 0", photos, engine="inline", **changes)
    bare, job = prepare_forwards(settings, photos)  # also what warms this process up
    say(f"{name}: best batches {', '.join(f'{f.name} {f.batch} of {len(f.inputs)}' for f in bare)}")
    jobs: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        ran = run(make_home(folder, f"{name} {number}", photos, engine="inline", **changes))
        loading = loading_seconds(job)
        models = {f.name: f.seconds(f.inputs, f.batch) for f in bare}
        stages = bare_stages(make_home(folder, f"{name} {number}, alone", photos, engine="inline", **changes))
        total = ran.seconds - loading
        jobs.append(
            {
                "ratio": total / sum(stages.values()),
                "ratio_to_models": total / sum(models.values()),
                "stages": stages,
                "seconds": total,
                "models": models,
                "loading": loading,
                "opening": ran.opening,
                "parts": parts(ran, loading),
                "beside": {stage: ran.state.tally.seconds[stage] for stage in ("read", "decode")},
            }
        )
        say(
            f"{name}: {seconds(total)}; stages {seconds(sum(stages.values()))}, ratio {jobs[-1]['ratio']:.3f}; "
            f"models {seconds(sum(models.values()))}, ratio {jobs[-1]['ratio_to_models']:.3f}"
        )
    tally = ran.state.tally
    return {
        "name": name,
        "images": tally.images,
        "faces": tally.faces,
        "restored": tally.restored,
        "threads": torch.get_num_threads(),
        "batches": {forward.name: forward.batch for forward in bare},
        "ratio": median(found["ratio"] for found in jobs),
        "ratio_to_models": median(found["ratio_to_models"] for found in jobs),
        "rounds": jobs,
    }


def prepare_forwards(settings: Settings, photos: Path) -> tuple[list[Forward], Job]:
    """Take the photographs through the stages once, for what each model will have to compute."""
    with night(settings, COLLECTION) as state:
        discover_images(state)
        found = Stages(state.catalog, state.job).through()
    files = [path.read_bytes() for path in sorted(photos.iterdir())]
    return forwards(state.job, files, found), state.job


def bare_stages(settings: Settings) -> dict[str, float]:
    """What each stage takes alone."""
    with night(settings, COLLECTION) as state:
        discover_images(state)
        stages = Stages(state.catalog, state.job)
        stages.record(stages.through())
    return stages.seconds


def parts(ran: Ran, loading: float) -> dict[str, float]:
    """What the seconds of a run in this process went into, its threads together; in all they are all but the loading."""
    steps, stages = ran.state.seconds, ran.state.tally.seconds
    serial = {name: stages[name] / thread_count(ran.state.settings) for name in SERIAL if name in stages}
    rest = steps["process"] - loading - sum(serial.values())
    others = {name: steps[name] for name in ("discover", "group", "audit", "report")}
    return {**serial, "record and waiting": rest, **others}


def engines(folder: Path, number: int, rounds: int = 2) -> dict[str, Any]:
    """Process the same photographs in this process and with Ray, by turns, without restoration."""
    photos = photo_sets.photographs(folder / "many photographs", number)
    found: dict[str, list[dict[str, float]]] = {"inline": [], "ray": []}
    for turn in range(rounds):
        for engine, results in found.items():
            home = f"{engine} {turn}"
            ran = run(make_home(folder, home, photos, engine=engine, **WITHOUT_RESTORER))
            total, (first, before), (last, images) = ran.state.seconds["process"], ran.recorded[0], ran.recorded[-1]
            results.append(
                {"seconds": total, "to_first": first, "images_per_second_after": (images - before) / (last - first)}
            )
            say(f"{number} photographs, {engine}: {seconds(total)}, the first {before} after {seconds(first)}")
    return {
        "images": number,
        **{engine: {key: median(r[key] for r in results) for key in results[0]} for engine, results in found.items()},
    }


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    table = []
    for case in measured["cases"]:
        middle = sorted(case["rounds"], key=lambda found: found["ratio"])[len(case["rounds"]) // 2]
        stages, models = sum(middle["stages"].values()), sum(middle["models"].values())
        table.append(
            Row(
                f"Whole job against the bare sum of its stages, and of its models' forwards, in one process: {case['name']} "
                f"with {case['faces']} faces, {case['restored']} restored (goal {GOAL}, of the stages)",
                f"{case['ratio']:.2f}, {case['ratio_to_models']:.2f}",
                f"{seconds(middle['seconds'])} against {seconds(stages)} and {seconds(models)}; "
                f"{shares(middle['parts'], middle['seconds'])}; the stages alone "
                f"{shares(middle['stages'], middle['seconds'])}; "
                f"not counted: {seconds(middle['opening'])} to open, {seconds(middle['loading'])} to load models",
            )
        )
    inline, ray = measured["engines"]["inline"], measured["engines"]["ray"]
    table.append(
        Row(
            f"Ray against one process, {measured['engines']['images']} photographs, no restoration",
            f"{inline['seconds'] / ray['seconds']:.2f}x its speed",
            f"{seconds(ray['seconds'])} against {seconds(inline['seconds'])}, of these to the first batch "
            f"{seconds(ray['to_first'])} and {seconds(inline['to_first'])}; after it {ray['images_per_second_after']:.1f} "
            f"and {inline['images_per_second_after']:.1f} images/s",
        )
    )
    return table
