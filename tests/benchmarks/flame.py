"""A flame graph of the whole job in one process: where its time goes, by function.

    python -m tests.benchmarks.flame               63 photographs, without restoration, to build/flame.svg
    python -m tests.benchmarks.flame --crops 400   small crops, where the models cost least

py-spy samples the process from outside, all its threads and C code as well where the system lets it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from infra.telemetry import silence
from tests.benchmarks import photo_sets
from tests.benchmarks.workplace import make_home, run, workplace

PICTURE = Path("build/flame.svg")
PER_SECOND = 200  # samples


def work(photographs: int, crops: int) -> None:
    """Take a night over the photographs in this process."""
    silence()
    with workplace() as folder:
        if crops:
            photos = photo_sets.crops(folder / "crops", crops)
        else:
            photos = photo_sets.photographs(folder / "photographs", photographs)
        run(make_home(folder, "home", photos, engine="inline", restore_model=""))


def main() -> None:
    """Start this program again under py-spy."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.flame", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=int, default=63)
    parser.add_argument("--crops", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        work(arguments.photographs, arguments.crops)
        return
    arguments.out.parent.mkdir(exist_ok=True, parents=True)
    profiler = Path(sys.executable).with_name("py-spy")
    kind = "raw" if arguments.out.suffix == ".txt" else "flamegraph"
    options = ["--output", arguments.out, "--rate", str(PER_SECOND), "--threads", "--format", kind]
    program = [sys.executable, "-m", "tests.benchmarks.flame", "--here", *sys.argv[1:]]
    subprocess.run([profiler, "record", *options, "--", *program], check=True)


if __name__ == "__main__":
    main()
