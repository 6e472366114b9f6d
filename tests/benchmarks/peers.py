"""The same photographs through Visage, through a plain loop over the same models, and through other tools.

The other tools live in an environment of their own, whose interpreter TEST_VISAGE_PEERS names; without it they are left out:

    python3 -m venv build/peers
    build/peers/bin/pip install dlib-bin face_recognition_models 'setuptools<81' numpy pillow click torch torchvision
    build/peers/bin/pip install --no-deps face_recognition facenet-pytorch
    TEST_VISAGE_PEERS=build/peers/bin/python python -m tests.benchmarks peers

Everybody gets the whole machine: Visage and the loop with torch's threads, the other tools, which have none or gain nothing
from them, with one process a processor, each with its share of the photographs. All detect and embed (facenet-pytorch only
detects); nobody restores or describes. Loading is left out.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tasks.align import align_faces
from tasks.decode import DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import embed
from tasks.evaluation.central_face import read_images
from tasks.evaluation.stage_limits import loading_seconds
from tasks.evaluation.verification import evaluate, pair_similarities, read_pairs
from tasks.execution.inference import load_for_inference
from tasks.job import Job
from tasks.photo_faces import PhotoFaces, crop
from tests.benchmarks import photo_sets
from tests.benchmarks.overhead import prepare_forwards
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, seconds
from tests.benchmarks.workplace import make_home, run, workplace
from tests.reference import SHARED

PROGRAM = Path(__file__).with_name("peer_program.py")
VARIABLE = "TEST_VISAGE_PEERS"
ONLY_FACES: dict[str, Any] = {"engine": "inline", "restore_model": "", "describe_models": ()}
TITLES = {
    "visage": "Visage",
    "loop": "a plain loop over the same models, photograph by photograph",
    "hog": "face_recognition, HOG detector",
    "cnn": "face_recognition, CNN detector",
    "mtcnn": "facenet-pytorch's MTCNN, detection alone",
}
SLOW = {"cnn": 6}  # at most so many photographs of a set: seconds each


def measure(crops: int = 300, photographs: int = 42, large: int = 4) -> dict[str, Any]:
    """Go through each set with everybody, then judge accuracy on LFW's pairs where they are."""
    with workplace() as folder:
        sets = {
            f"{crops} crops of 128 x 128": photo_sets.crops(folder / "crops", crops),
            f"{photographs} photographs": photo_sets.photographs(folder / "photographs", photographs),
            f"{large} composites of 12 megapixels": photo_sets.composites(folder / "composites", large),
        }
        cases = {name: compare(folder, f"set {i}", photos) for i, (name, photos) in enumerate(sets.items())}
        return {"sets": cases, "accuracy": accuracy(folder)}


def compare(folder: Path, home: str, photos: Path) -> dict[str, dict[str, float]]:
    """Photographs a second and faces found, by tool."""
    settings = make_home(folder, f"{home} warm", photos, **ONLY_FACES)
    bare, job = prepare_forwards(settings, photos)
    ran = run(make_home(folder, home, photos, **ONLY_FACES))
    count, files = ran.state.tally.images, [path.read_bytes() for path in sorted(photos.iterdir())]
    limit = sum(forward.seconds(forward.inputs, forward.batch) for forward in bare)
    found = {
        "visage": {"seconds": ran.seconds - loading_seconds(job), "photos": count, "faces": ran.state.tally.faces},
        "loop": plain_loop(job, photos),
        "models": {"seconds": limit, "photos": count},
        "decoding": {"seconds": _decoding_seconds(files, job.settings.detect_long_side), "photos": count},
    }
    tools = ("hog", "mtcnn") if photos.name == "composites" else ("hog", "cnn", "mtcnn")  # CNN: minutes and 10 GB each
    for tool in tools if os.environ.get(VARIABLE) else ():
        with some(photos, SLOW.get(tool, count)) as chosen:
            parts = list(peer(tool, chosen))
            found[tool] = {
                "seconds": max(part["seconds"] for part in parts),
                "photos": sum(len(part["faces"]) for part in parts),
                "faces": sum(len(faces) for part in parts for faces in part["faces"].values()),
            }
    for tool, result in found.items():
        say(
            f"{photos.name}, {tool}: {result['photos'] / result['seconds']:.2f} photographs/s, {result.get('faces')} faces"
        )
    return found


def _decoding_seconds(files: Sequence[bytes], long_side: int) -> float:
    start = time.perf_counter()
    for data in files:
        decode(data, long_side=long_side)
    return time.perf_counter() - start


def plain_loop(job: Job, photos: Path) -> dict[str, float]:
    """Decode in full, detect, align and embed one photograph after the other."""
    detect, limits = Detect(job.recipe.detector, job.device), DecodeLimits()
    spec, network, faces = job.recipe.embedder.spec, load_for_inference(job.recipe.embedder), 0
    assert spec.preprocess is not None
    template = spec.preprocess.template
    start = time.perf_counter()
    for path in sorted(photos.iterdir()):
        data = path.read_bytes()
        [item] = detect([Decoded(PhotoFaces(0, path.name, len(data)), decode(data, limits), data)])
        found = align_faces(item, limits, [template])
        if found.face_count:
            faces += len(embed(network, spec, found.arrays[crop(template)], "cpu"))
    return {"seconds": time.perf_counter() - start, "photos": len(list(photos.iterdir())), "faces": faces}


def peer(tool: str, photos: Path) -> Iterator[dict[str, Any]]:
    """Run a tool in as many processes as there are processors."""
    processes = os.cpu_count() or 1
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as results:
        running = []
        for part in range(processes):
            arguments = [tool, photos, Path(results, f"{part}.json"), str(part), str(processes)]
            running.append(subprocess.Popen([os.environ[VARIABLE], PROGRAM, *arguments], env=environment))
        for process in running:
            if process.wait():
                raise RuntimeError(f"{tool} ended with {process.returncode}; what it said is above")
        for part in range(processes):
            yield json.loads(Path(results, f"{part}.json").read_text())


@contextmanager
def some(photos: Path, count: int) -> Iterator[Path]:
    """A folder with links to the first photographs of another."""
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(photos.iterdir())[:count]:
            Path(folder, path.name).symlink_to(path)
        yield Path(folder)


def accuracy(folder: Path) -> dict[str, dict[str, float]]:
    """Verification on folds 1 to 5 by face_recognition's HOG; ours is `visage evaluate verification`, with the same rules."""
    pairs_file = SHARED / "data" / "lfw_pairs_folds_1_5.csv"
    if not (os.environ.get(VARIABLE) and pairs_file.exists()):
        return {}
    pairs = read_pairs(pairs_file)
    names = sorted({*pairs.a, *pairs.b})
    images = folder / "pairs"
    images.mkdir()
    for name, data in read_images(photo_sets.CROPS, names):
        (images / name).write_bytes(data)
    found = {name: faces for part in peer("hog", images) for name, faces in part["faces"].items()}
    vectors = {name: np.array(faces[0]) for name, faces in found.items() if faces}
    lengths = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    report = evaluate(pair_similarities(pairs, lengths), pairs.same, pairs.fold, nan_is_missing_face=True)
    say(f"HOG: accuracy {report.accuracy:.4f}, {len(names) - len(vectors)} pictures without a face")
    return {
        "hog": {
            "accuracy": report.accuracy,
            "standard_error": report.accuracy_standard_error,
            "pictures": len(names),
            "without_face": len(names) - len(vectors),
        }
    }


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    table = []
    for name, found in measured["sets"].items():
        speed = {tool: result["photos"] / result["seconds"] for tool, result in found.items()}
        bare = found["models"]["seconds"] + found["decoding"]["seconds"]
        beside = [
            f"{TITLES[tool]} {value:.2f}/s, {int(found[tool]['faces'])} faces in {int(found[tool]['photos'])}: "
            f"{speed['visage'] / value:.2f}x"
            for tool, value in speed.items()
            if tool in TITLES and tool != "visage"
        ]
        table.append(
            Row(
                f"{name}: detect and embed; {int(found['visage']['faces'])} faces",
                f"{speed['visage']:.2f}/s",
                f"bare sum of decoding and model forwards {seconds(bare)}, whole {seconds(found['visage']['seconds'])}: "
                f"{found['visage']['seconds'] / bare:.2f}; " + "; ".join(beside),
            )
        )
    for tool, found in measured["accuracy"].items():
        table.append(
            Row(
                f"Verification on LFW's folds 1 to 5 by {TITLES[tool]}",
                f"{found['accuracy']:.4f} ± {found['standard_error']:.4f}",
                f"no face found in {int(found['without_face'])} of {int(found['pictures'])} pictures",
            )
        )
    return table
