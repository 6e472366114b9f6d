"""Run the benchmarks and print one table of them.

    python -m tests.benchmarks            all of them, about 15 minutes on two quiet cores
    python -m tests.benchmarks overhead   one of them

The table goes to stdout, progress to stderr, everything measured to build/benchmarks.json.
"""

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from infra.settings import PREFIX
from infra.telemetry import silence
from tests.benchmarks import machine, photo_sets
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, markdown

NAMES = ("decoding", "overhead", "peers", "second_run", "startup", "memory", "service")
RESULTS = Path("build/benchmarks.json")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; all if none is given")
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    measure_the_defaults()
    results: dict[str, Any] = {"machine": machine.describe(), "origin": photo_sets.origin()}
    rows: list[Row] = []
    say(machine.sentence(results["machine"]))
    RESULTS.parent.mkdir(exist_ok=True)
    for name in names:
        say(f"== {name}")
        benchmark = import_module(f"tests.benchmarks.{name}")
        results[name] = benchmark.measure()
        rows += benchmark.rows(results[name])
        RESULTS.write_text(json.dumps(results, indent=2))  # after each, so that an interruption loses one
    print(f"{machine.sentence(results['machine'])}. {results['origin']}.\n\n{markdown(rows)}")


def measure_the_defaults() -> None:
    """Leave aside how this user has set Visage and Prefect up: figures are of the embedded defaults."""
    silence()
    for name in [*os.environ]:
        if (name.startswith(PREFIX) and "TEST" not in name) or name == "PREFECT_API_URL":
            del os.environ[name]


if __name__ == "__main__":
    main()
