"""How many killed nights lose, repeat or orphan anything: none may.

python -m tests.benchmarks.crashes [--kills 200] [--changing 50] [--ray 8] [--seed N]
"""

import argparse
import random
import secrets
import sys
import time
from collections.abc import Callable

from infra.settings import Settings
from tests.benchmarks.progress import say
from tests.benchmarks.workplace import workplace
from tests.crashes.left import left
from tests.crashes.nights import NIGHT, Place, Report, archive, changing_rounds, place, rounds
from tests.crashes.ray_nights import VICTIMS, ray_night
from tests.weights import CACHE


def main() -> None:
    """Kill, compare, and end with 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.crashes", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of nights over a collection that stays as it is")
    parser.add_argument("--changing", type=int, default=50, help="while photographs come, change and go")
    parser.add_argument("--ray", type=int, default=8, help="of Ray's workers, of Ray, and of drivers that use it")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    chosen = parser.parse_args()
    say(f"seed {chosen.seed}")
    with workplace() as folder, place(folder, CACHE / "weights", folder / "mlflow.db") as somewhere:
        reports = {
            "nights over the same collection": _timed(rounds, somewhere, chosen.seed, chosen.kills),
            "nights over a changing collection": _timed(changing_rounds, somewhere, chosen.seed, chosen.changing),
            "nights with Ray": _timed(with_ray, somewhere, chosen.seed, chosen.ray),
        }
    for name, (report, seconds) in reports.items():
        print(f"{name}: {len(report.meant)} kills, {report.hits} hit, {len(report.wrong)} wrong, {seconds:.0f} s")
        print("\n".join(report.wrong))
    sys.exit(any(report.wrong for report, _ in reports.values()))


def with_ray(somewhere: Place, seed: int, kills: int) -> Report:
    """Kill processes of nights that Ray works on, one in each home, and compare what the next night leaves."""
    rng, report = random.Random(seed), Report()
    photos = archive(somewhere.folder / "photos for Ray", 40)
    expected, _ = somewhere.undisturbed("undisturbed by Ray", photos)
    for number in range(kills):
        victim = VICTIMS[number % len(VICTIMS)]
        settings = somewhere.home(f"Ray {number}", photos)
        killed = ray_night(settings, victim, rng)
        ended = somewhere.forks.run(NIGHT, settings)
        found = left(Settings(**settings))
        report.meant.append(victim)
        report.hits += victim == "worker" or killed.code != 0
        report.wrong += found.problems + found.differences(expected) + killed.survivors
        if ended.code != 0 or (victim == "worker" and killed.code != 0):
            report.wrong.append(f"{victim}: ended with {killed.code} and then {ended.code}: {killed.said} {ended.said}")
    return report


def _timed(kill: Callable[[Place, int, int], Report], somewhere: Place, seed: int, kills: int) -> tuple[Report, float]:
    start = time.monotonic()
    return kill(somewhere, seed, kills), time.monotonic() - start


if __name__ == "__main__":
    main()
