"""What a second worker brings, and whether an image costs the same however many there are.

    python -m tests.benchmarks.workers [--workers 1 2] [--images 200 400] [--crops]

A worker is a Ray node with one processor, held to one core of this machine, as a machine of its own would be; the driver, which
records, is wherever there is time. Each number of workers is a cluster of its own, and its runs a process of their own. Of
each run: seconds until the first images are recorded, and images per second from then to the last. Without restoration.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.settings import PREFIX
from tests.benchmarks import photo_sets
from tests.benchmarks.progress import say
from tests.benchmarks.workplace import make_home, run, workplace
from tests.cluster import ray_cluster

HERE = "tests.benchmarks.workers"


def measure(address: str, images: int, crops: bool) -> dict[str, Any]:
    """Process so many images on the cluster."""
    with workplace() as folder:
        photos = (photo_sets.crops if crops else photo_sets.photographs)(folder / "photos", images)
        settings = make_home(folder, "home", photos, engine="ray", ray_address=address, restore_model="")
        ran = run(settings)
    (first, before), (last, after) = ran.recorded[0], ran.recorded[-1]
    assert ran.state.tally.images == after == images
    rate = (after - before) / (last - first)
    return {"images": images, "seconds": ran.state.seconds["process"], "to_first": first, "images_per_second": rate}


def main() -> None:
    """Measure every number of workers with every number of images, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(f"python -m {HERE}", description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--images", nargs="+", type=int, default=[200, 400])
    parser.add_argument("--crops", action="store_true", help="of 128 pixels, instead of photographs")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.address:
        for images in chosen.images:
            print(json.dumps(measure(chosen.address, images, chosen.crops)), flush=True)
        return
    for workers in chosen.workers:
        with ray_cluster(workers, pinned=True) as cluster:
            say(f"{workers} workers are there")
            options = ["--address", cluster.address, "--images", *map(str, chosen.images)]
            command = [sys.executable, "-m", HERE, *options, *(["--crops"] if chosen.crops else [])]
            outside = {name: value for name, value in cluster.environment.items() if not name.startswith(PREFIX)}
            ended = subprocess.run(
                command, env=outside, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True
            )
        for line in ended.stdout.splitlines():
            found = {name: round(value, 2) for name, value in json.loads(line).items()}
            print(json.dumps({"workers": workers, **found}), flush=True)


if __name__ == "__main__":
    main()
