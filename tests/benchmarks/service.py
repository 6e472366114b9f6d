"""The web service over a large catalog: how long its pages and searches take, and when the first picture is there.

python -m tests.benchmarks.service                       fill a catalog of 100,000 faces, and measure
python -m tests.benchmarks.service fill FOLDER           only fill one, to be measured later
python -m tests.benchmarks.service ask FOLDER            measure on it
python -m tests.benchmarks.service scroll FOLDER         scroll through all of it in Chromium: what the page's memory does
"""

import argparse
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from flows.service import paging
from flows.service.limits import Rate, Rates
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import (
    Collection,
    Content,
    Embedding,
    Face,
    FaceIdentity,
    Identity,
    Image,
    ModelVersion,
    now,
)
from infra.settings import Settings
from infra.storage import Entry, open_store
from models.spec import Role
from tasks.recipe import enter_versions, version_for
from tests.benchmarks import scrolling
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, markdown, seconds
from tests.benchmarks.workplace import COLLECTION, home_of, make_home, workplace
from tests.browser import CHROMIUM, chromium
from tests.portraits import jpeg, portrait
from tests.serving import serving

FACES_EACH = 10  # of a person
BATCH = 5_000
REAL = 240  # photographs that can be opened: what is looked at
NO_LIMIT = Rates(*[Rate(10**9, 10**9)] * 3)


def measure(faces: int = 100_000, requests: int = 200, clients: int = 4) -> dict[str, Any]:
    """Fill a catalog and ask a service on loopback over it."""
    with workplace() as folder:
        settings = make_home(folder, "home", folder / "photographs")
        fill(settings, faces, write_photographs(folder / "photographs"))
        return ask_all(settings, requests, clients)


def ask_all(settings: Settings, requests: int = 200, clients: int = 4) -> dict[str, Any]:
    """Ask for the same things again and again; medians and 99th percentiles in seconds."""
    with Catalog(settings.catalog_url).read() as session:
        faces = session.scalar(select(func.count(Face.id))) or 0
    say(f"{faces:,} faces are in the catalog")
    with (
        serving(settings, rates=NO_LIMIT) as url,
        httpx.Client(base_url=url, timeout=120) as client,
        httpx.Client(base_url=f"{url}/api/v1", timeout=120) as api,
    ):
        random = np.random.default_rng(0)
        probe = jpeg(portrait(512))

        def face() -> int:
            return int(random.integers(1, faces + 1))

        asked: dict[str, Callable[[], httpx.Response]] = {
            "wall": lambda: client.get("/photographs"),
            "wall_deep": lambda: client.get("/photographs", params={"after": paging.cursor([face()])}),
            "question": lambda: client.get("/photographs", params={"question": "quality > 0.5 and person is known"}),
            "face": lambda: client.get(f"/faces/{face()}"),
            "people": lambda: client.get("/people"),
            "search_id": lambda: api.get(f"/faces/{face()}/neighbours"),
            "search_photo": lambda: api.post("/search", files={"photo": ("a.jpg", probe)}),
        }
        found: dict[str, Any] = {"faces": faces, "requests": requests, "clients": clients}
        for name, ask in asked.items():
            found[name] = percentiles(ask, requests if name != "search_photo" else requests // 2)
            say(f"{name}: {found[name]}")
        with ThreadPoolExecutor(clients) as pool:
            together = [pool.submit(percentiles, asked["wall"], requests // clients) for _ in range(clients)]
            found["wall_together"] = {
                "p50": float(np.median([f.result()["p50"] for f in together])),
                "p99": max(f.result()["p99"] for f in together),
            }
        if CHROMIUM.exists():
            found["browser"] = {"cold": in_browser(url), "warm": in_browser(url)}
    return found


def percentiles(ask: Callable[[], httpx.Response], requests: int) -> dict[str, float]:
    """Seconds of one request after the other; the first, which opens what stays open, apart."""
    start = time.perf_counter()
    ask().raise_for_status()
    first = time.perf_counter() - start
    took = []
    for _ in range(requests):
        start = time.perf_counter()
        ask().raise_for_status()
        took.append(time.perf_counter() - start)
    return {
        "first": first,
        "p50": float(np.percentile(took, 50)),
        "p99": float(np.percentile(took, 99)),
    }


def in_browser(url: str) -> dict[str, float]:
    """Open the wall in a new Chromium: seconds until the first and the last picture in sight, and kB without pictures."""
    with chromium() as page:
        others: list[int] = []
        page.on("response", lambda r: others.append(0 if "/picture" in r.url else len(r.body())))
        page.goto(f"{url}/photographs")
        page.wait_for_load_state("networkidle")
        ends = page.evaluate(
            "performance.getEntriesByType('resource').filter(e => e.name.includes('/picture')).map(e => e.responseEnd)"
        )
    return {"first_picture": min(ends) / 1000, "pictures": len(ends), "page_kb": sum(others) / 1000}


def write_photographs(folder: Path) -> Path:
    """Write photographs of 2.4 megapixels, no two alike."""
    folder.mkdir(parents=True)
    large = portrait(1550)
    for number in range(REAL):
        pixels = large.copy()
        pixels[:8, :8] = number
        (folder / f"{number:06}.jpg").write_bytes(jpeg(pixels, quality=85))
    return folder


def fill(settings: Settings, faces: int, photographs: Path) -> None:
    """Enter photographs of one face each, ten to a person; the newest can be opened."""
    real = [e for page in open_store(str(photographs)).list() for e in page if isinstance(e, Entry)]
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        versions = [version_for(r, n, settings) for r, n in ((Role.DETECT, "mtcnn"), (Role.EMBED, "dlib-resnet"))]
        detector, embedder = (enter_versions(session, versions)[version.contract] for version in versions)
        session.get_one(ModelVersion, embedder).serving = True
        collection = session.query(Collection).filter_by(name=COLLECTION).one().id
    random = np.random.default_rng(1923)
    for first in range(1, faces + 1, BATCH):
        ids = range(first, min(first + BATCH, faces + 1))
        with catalog.write() as session:
            _enter(session, ids, faces, real, collection, detector, embedder, random)
    catalog.close()


def _enter(
    session: Session,
    ids: range,
    faces: int,
    real: list[Entry],
    collection: int,
    detector: int,
    embedder: int,
    random: np.random.Generator,
) -> None:
    people = sorted({1 + i // FACES_EACH for i in ids})
    there = range(people[0] + (1 if ids[0] > 1 and ids[0] % FACES_EACH else 0), people[-1] + 1)
    vectors = random.standard_normal((len(ids), 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entries = {faces - n: entry for n, entry in enumerate(real)}
    made = {"collection_id": collection, "status": "done", "recipe": "r", "run_id": 1}
    size = {"width": 1550, "height": 1550, "format": "jpeg", "notes": [], "failure_retryable": False}
    session.execute(
        insert(Content), [{"id": i, "sha256": f"{i:064x}", "owner_image_id": i, **made, **size} for i in ids]
    )
    session.execute(
        insert(Image),
        [
            {
                "id": i,
                "key": entries[i].key if i in entries else f"{i // 1000:03}/{i:06}.jpg",
                "etag": entries[i].etag if i in entries else "",
                "size": 1,
                "modified_at": now(),
                "content_id": i,
                "retryable": False,
                **made,
            }
            for i in ids
        ],
    )
    box = {"x1": 500.0, "y1": 200.0, "x2": 900.0, "y2": 700.0, "landmarks": np.zeros(10, np.float32)}
    judged = {"score": 0.99, "quality": 0.8, "quality_parts": {}, "crop_key": "none.jpg", "ordinal": 0}
    session.execute(insert(Face), [{"id": i, "content_id": i, "detector_id": detector, **box, **judged} for i in ids])
    session.execute(
        insert(Embedding),
        [{"face_id": i, "model_version_id": embedder, "vector": v} for i, v in zip(ids, vectors, strict=True)],
    )
    if there:
        session.execute(insert(Identity), [{"id": p, "model_version_id": embedder} for p in there])
    session.execute(
        insert(FaceIdentity),
        [{"face_id": i, "model_version_id": embedder, "identity_id": 1 + i // FACES_EACH, "run_id": 1} for i in ids],
    )


def rows(found: dict[str, Any]) -> list[Row]:
    """Lay the figures out for the table."""
    names = {
        "wall": "first wall of photographs",
        "wall_deep": "a wall anywhere among them",
        "question": "the wall filtered by a question that all faces answer to",
        "face": "a face's page, without its neighbours",
        "people": "the grid of people",
        "search_id": "search by a face of the catalog",
        "search_photo": "search by photograph, detection and embedding included",
    }
    laid = [
        Row(
            f"{what}, {found['faces']:,} faces",
            f"p50 {seconds(found[name]['p50'])}, p99 {seconds(found[name]['p99'])}",
            f"the first one {seconds(found[name]['first'])}",
        )
        for name, what in names.items()
    ]
    together = found["wall_together"]
    laid.append(
        Row(
            f"the wall for {found['clients']} at once",
            f"p50 {seconds(together['p50'])}, p99 {seconds(together['p99'])}",
        )
    )
    if "browser" in found:
        cold, warm = found["browser"]["cold"], found["browser"]["warm"]
        laid.append(
            Row(
                "Chromium opens the wall: first picture, thumbnails there",
                seconds(warm["first_picture"]),
                f"made then {seconds(cold['first_picture'])}; page without pictures {warm['page_kb']:.0f} kB",
            )
        )
    return laid


def main() -> None:
    """Do one part, on a catalog in a folder that stays."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.service", description=__doc__)
    parser.add_argument("part", choices=["fill", "ask", "scroll"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faces", type=int, default=100_000)
    given = parser.parse_args()
    photographs = given.folder / "photographs"
    if given.part == "fill":
        given.folder.mkdir(parents=True)
        with workplace() as installed:
            shutil.copyfile(installed / "mlflow.db", given.folder / "mlflow.db")
        write_photographs(photographs)
        fill(make_home(given.folder, "home", photographs), given.faces, photographs)
        return
    settings = home_of(given.folder, "home")
    if given.part == "ask":
        print(markdown(rows(ask_all(settings))))
    else:
        print(markdown(scrolling.rows(scrolling.scroll(settings))))


if __name__ == "__main__":
    main()
