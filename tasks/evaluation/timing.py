"""How long the work on one face takes, in one thread of this machine, by the code that does it every night.

Times are processor time of the calling thread. On a quiet machine that is elapsed time; on a busy one it leaves out what
others take, so that a figure belongs to the code and not to its neighbours.
"""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import thread_time

import numpy as np

from tasks.detect import Decoded
from tasks.embed import BATCH, embed
from tasks.evaluation.central_face import FaceFinder, template_of
from tasks.execution.inference import load_for_inference
from tasks.execution.side_by_side import torch_threads
from tasks.model_version import ModelVersion
from tasks.photo_faces import crop

SECONDS = 2.0  # for which a measurement repeats its work
AT_LEAST = 3  # times, however long they take


def median_ms(work: Callable[[], object]) -> float:
    """Median ms of a call, repeated for SECONDS and AT_LEAST times after a first one that does not count."""
    work()
    times: list[float] = []
    while len(times) < AT_LEAST or sum(times) < SECONDS:
        start = thread_time()
        work()
        times.append(thread_time() - start)
    return 1000 * median(times)


def embedding_ms(version: ModelVersion, faces: Sequence[Decoded], finder: FaceFinder) -> tuple[float, float]:
    """Median ms per face of embedding aligned crops, alone and in a batch of 32, in one thread."""
    found = [finder.align(face, [template_of(version)]) for face in faces]
    crops = np.concatenate([face.arrays[crop(template_of(version))] for face in found])
    batch = np.resize(crops, (BATCH, *crops.shape[1:]))  # repeats them where there are fewer
    network = load_for_inference(version)
    with torch_threads(1):
        alone = median_ms(lambda: embed(network, version.spec, batch[:1], "cpu"))
        together = median_ms(lambda: embed(network, version.spec, batch, "cpu")) / BATCH
    return alone, together


def pipeline_ms(version: ModelVersion, faces: Sequence[Decoded], finder: FaceFinder) -> float:
    """Median ms of detecting, aligning and embedding one face, over decoded pictures with one each, in one thread."""
    network = load_for_inference(version)

    def work(picture: Decoded) -> None:
        [found] = finder.find([picture])
        crops = finder.align(found, [template_of(version)]).arrays[crop(template_of(version))]
        embed(network, version.spec, crops, "cpu")

    with torch_threads(1):
        work(faces[0])
        times = []
        for face in faces:
            start = thread_time()
            work(face)
            times.append(thread_time() - start)
    return 1000 * median(times)


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
