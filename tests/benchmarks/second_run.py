"""A second run on an unchanged collection: what it costs, proof that it loads no model and reads no image."""

import hashlib
import os
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np

from flows import night as steps
from flows.night import Night, night
from infra.catalog.faces import AttributeRecord, FaceRecord, PhotoRecord, record_photos
from infra.catalog.images import claim, pending, pending_pages
from infra.settings import Settings
from models.spec import Kind
from tests.benchmarks.command import server_stopped_afterwards, visage_run
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, seconds, shares
from tests.benchmarks.workplace import COLLECTION, Ran, make_home, run, workplace

BATCH = 500


def measure(keys: int = 10_000, rounds: int = 5) -> dict[str, Any]:
    """Fill a catalog with `keys` images of one face each, then run again: here, without models or images, and as command."""
    with workplace() as folder:
        photos = write_files(folder / "photographs", keys)
        settings = make_home(folder, "home", photos, engine="inline")
        first_night(settings)
        say(f"{keys:,} images are in the catalog")
        with patch("infra.weights.load", _forbidden), patch("infra.storage.folder.Folder.read", _forbidden):
            runs = [run(settings) for _ in range(rounds)]
        assert all(ran.state.discovery.unchanged == keys and ran.state.engine == "none" for ran in runs)
        listings = [seconds_of_listing(photos) for _ in range(rounds)]
        with server_stopped_afterwards(settings):
            commands = [visage_run(settings, _seconds) for _ in range(rounds)]
    found: dict[str, Any] = {
        "keys": keys,
        "seconds": median(map(_whole, runs)),
        "steps": {step: median(ran.state.seconds[step] for ran in runs) for step in runs[0].state.seconds},
        "opening": median(ran.opening for ran in runs),
        "bare_listing": median(listings),
        "command": median(commands[1:]),  # the first one starts the Prefect server
    }
    say(f"again: {seconds(found['seconds'])}; as a command {seconds(found['command'])}")
    return found


def write_files(folder: Path, number: int) -> Path:
    """Write files that a listing shows like photographs. Nothing ever reads them."""
    for key in range(number):
        path = folder / f"{key // 1000:03}" / f"{key:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(key))
    return folder


def first_night(settings: Settings) -> None:
    """Leave the catalog as a run leaves it, made-up faces in place of the models' results; the run's own audit proves it."""
    with night(settings, COLLECTION) as state:
        steps.discover_images(state)
        with state.catalog.read() as session:
            pages = pending_pages(session, state.job.collection_id, state.job.run_id, BATCH)
        for page in pages:
            record_made_up(state, page)
        steps.process_images(state)  # has nothing left to do but to close the books
        steps.group_faces(state)
        steps.audit_catalog(state)
    assert state.audited is not None
    assert state.audited.faces == state.discovery.new


def record_made_up(state: Night, page: tuple[int, int]) -> None:
    """Record a page of pending images with a made-up face each."""
    job = state.job
    with state.catalog.write() as session:
        work = pending(session, job.collection_id, job.run_id, page)
        digests = [(item.image_id, hashlib.sha256(item.key.encode()).hexdigest()) for item in work]
        claims = claim(session, job.collection_id, job.run_id, job.recipe.digest, digests)
        photos = [
            PhotoRecord(
                image_id, claims[image_id][0], "jpeg", 640, 480, None, None, [], (_face(state, image_id, sha256),)
            )
            for image_id, sha256 in digests
        ]
        record_photos(session, job.run_id, job.contract, photos)


def _face(state: Night, seed: int, sha256: str) -> FaceRecord:
    recipe, random = state.job.recipe, np.random.default_rng(seed)
    vector = random.standard_normal(recipe.embedder.spec.dimension or 0).astype(np.float32)
    ids = dict(zip([v.contract for v in recipe.describing], state.job.contract.describer_ids, strict=True))
    return FaceRecord(
        box=np.array([100, 100, 200, 220], np.float32),
        landmarks=random.uniform(110, 190, (5, 2)).astype(np.float32),
        score=0.99,
        quality=0.8,
        quality_parts={"sharpness": 0.8},
        crop_key=f"{state.job.collection_id}/{sha256[:2]}/{sha256}.jpg",
        embedding=vector / np.linalg.norm(vector),
        attributes=tuple(
            AttributeRecord(
                ids[version.contract],
                attribute.name,
                value=0.0,
                label=attribute.classes[0] if attribute.kind is Kind.CATEGORY else None,
                confidence=0.9,
                probabilities=None,
            )
            for version, attribute in recipe.stored_attributes
        ),
    )


def seconds_of_listing(folder: Path) -> float:
    """Walk and stat the files as barely as Python can: what no second run can do without."""
    start = time.perf_counter()
    pending_folders = [str(folder)]
    while pending_folders:
        with os.scandir(pending_folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending_folders.append(entry.path)
                else:
                    entry.stat()
    return time.perf_counter() - start


def _forbidden(*_: object, **__: object) -> NoReturn:
    raise AssertionError("an unchanged collection must load no model and read no image")


def _whole(ran: Ran) -> float:
    return ran.opening + ran.seconds


def _seconds(process: "subprocess.Popen[bytes]") -> float:
    start = time.perf_counter()
    process.wait()
    return time.perf_counter() - start


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    parts = {"open": measured["opening"], **measured["steps"]}
    return [
        Row(
            f"Second run on {measured['keys']:,} unchanged images with a face each: no model loaded, no image read",
            seconds(measured["seconds"]),
            f"{shares(parts, measured['seconds'])}; bare listing {seconds(measured['bare_listing'])}; "
            f"as the command `visage run`, Prefect server up, {seconds(measured['command'])}",
        )
    ]
