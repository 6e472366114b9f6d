"""How fast and how completely faces are found, by the size of the catalog, on both engines.

    python -m tests.benchmarks.search                                    10 and 100 thousand faces, 128-D (minutes)
    python -m tests.benchmarks.search --faces 1000000 --dimension 512 --folder DIR --fill    a million takes long to enter:
    python -m tests.benchmarks.search --faces 1000000 --dimension 512 --folder DIR --engines sqlite    measure it afterwards

The crowd is synthetic (tests.crowd), people with 10 faces each, lying as real ones do. It tells how well an
index finds, not how well a model recognises. Measured is the whole question, as a service asks it: `search_faces` by a face of
the catalog, from the filter to the rows of the answer; and beside it the index alone. The limit is faiss's HNSW in memory, with
nothing around it. Recall is against comparing all vectors in full precision. One thread. CPU time, without the server's, says
more than wall time where others share the machine.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import faiss
import numpy as np
import psutil
from sqlalchemy import func, select, text

from infra.catalog.database import Catalog
from infra.catalog.queries.filters import FaceFilter
from infra.catalog.search import open_projections, projection
from infra.catalog.search.vectors import create_index, index_name
from infra.catalog.tables.schema import Embedding
from infra.settings import Settings
from tasks.search import Query, search_faces, serving_version
from tasks.search_index import open_index
from tests import crowd
from tests.benchmarks import machine
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, markdown, megabytes, seconds
from tests.catalogs import PostgreSQL

QUERIES = 300
ENOUGH = 0.99
HNSW_LINKS, HNSW_CONSTRUCTION = 16, 80


def main() -> None:
    """Measure and print one table, a block after each size."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--engines", nargs="*", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    parser.add_argument("--no-limit", action="store_true", help="leave faiss's HNSW out")
    parser.add_argument("--folder", type=Path, help="keep SQLite's catalogs here, and use those that are here")
    parser.add_argument("--index-alone", action="store_true", help="without a database: what faiss does for SQLite")
    parser.add_argument("--fill", action="store_true", help="only enter the faces into SQLite's catalogs in --folder")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if options.fill:
        for count in options.faces:
            with _catalog("sqlite", _kept(options.folder, count, options.dimension)) as (catalog, _):
                _entered(catalog, crowd.vectors(count, options.dimension))
        return
    print(machine.sentence(machine.describe()), flush=True)
    for count in options.faces:
        folder = None if options.folder is None else _kept(options.folder, count, options.dimension)
        if options.index_alone:
            rows = list(measure_index(count, options.dimension, not options.no_limit))
        else:
            rows = list(measure(count, options.dimension, options.engines, not options.no_limit, folder))
        print(f"\n{count:,} faces, {options.dimension}-D\n\n{markdown(rows)}", flush=True)


def measure(count: int, dimension: int, engines: list[str], with_limit: bool, folder: Path | None) -> Iterator[Row]:
    """Measure every engine on one crowd; SQLite's catalog is kept in `folder`."""
    faces = crowd.vectors(count, dimension)
    asked = np.random.default_rng(1).choice(count, QUERIES, replace=False) + 1
    truth, truth_small = _truth(faces, asked)
    if with_limit:
        yield from _limit(faces, asked, truth)
    for engine in engines:
        with _catalog(engine, folder) as (catalog, settings):
            _entered(catalog, faces)
            build, size = (_built_by_faiss if engine == "sqlite" else _built_by_postgresql)(catalog, settings)
            yield from _asked(
                engine, catalog, settings, faces, asked, truth, truth_small, f"built in {seconds(build)}, {size}"
            )


def measure_index(count: int, dimension: int, with_limit: bool) -> Iterator[Row]:
    """Measure the index of cells over one crowd, as SQLite's catalogs have it from 100 thousand faces."""
    faces = crowd.vectors(count, dimension)
    asked = np.random.default_rng(1).choice(count, QUERIES, replace=False) + 1
    truth, _ = _truth(faces, asked)
    if with_limit:
        yield from _limit(faces, asked, truth)
    start = perf_counter()
    every = max(1, count // (projection.TRAINED_ON * projection.cells_for(count)))
    index: Any
    index, kept = projection.with_cells(count, [faces[::every]])
    index.add_with_ids(faces, np.arange(1, count + 1))
    probes, _ = projection.probes_for(index, kept)
    built = perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.faiss"
        faiss.write_index(index, str(file))
        start = perf_counter()
        index, size = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC), file.stat().st_size
        opened, index.nprobe = perf_counter() - start, probes

        def ask(face: int) -> set[int]:
            found = index.search(faces[face - 1 : face], 84)[1][0]
            return {i for i in found.tolist() if i in truth_of[face]}

        truth_of = dict(zip(asked.tolist(), truth, strict=True))
        _timed(ask, asked)  # pages warm
        found, times = _timed(ask, asked)
    yield Row(
        f"the index alone, 84 candidates of {index.nlist:,} cells",
        f"{_percentiles(times)}; of the 10 nearest among them {_recall(found, truth):.4f}",
        f"built in {seconds(built)}, {megabytes(size)}, opened in {seconds(opened)}; {probes} cells probed",
    )


def _truth(faces: np.ndarray, asked: np.ndarray) -> tuple[list[set[int]], list[set[int]]]:
    """The 10 nearest others of each asked face, of all and of the collection that holds one percent."""
    flat = faiss.IndexFlatIP(faces.shape[1])
    flat.add(faces)
    small = np.arange(crowd.SMALL_EVERY, len(faces) + 1, crowd.SMALL_EVERY)
    of_small = faiss.IndexFlatIP(faces.shape[1])
    of_small.add(faces[small - 1])
    queries = faces[asked - 1]
    found, found_small = flat.search(queries, 11)[1] + 1, small[of_small.search(queries, 11)[1]]

    def others(rows: np.ndarray) -> list[set[int]]:
        return [
            set([i for i in row.tolist() if i != face][:10]) for row, face in zip(rows, asked.tolist(), strict=True)
        ]

    return others(found), others(found_small)


def _limit(faces: np.ndarray, asked: np.ndarray, truth: list[set[int]]) -> Iterator[Row]:
    """faiss's HNSW over float32 vectors in memory, with the least effort that finds enough."""
    before, start = psutil.Process().memory_info().rss, perf_counter()
    index = faiss.IndexHNSWFlat(faces.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_CONSTRUCTION
    index.add(faces)
    built, memory = perf_counter() - start, psutil.Process().memory_info().rss - before
    for effort in (16, 32, 64, 128, 256, 512):
        index.hnsw.efSearch = effort
        found, times = _timed(lambda face: index.search(faces[face - 1 : face], 11)[1][0] + 1, asked)
        recall = _recall(
            [set([i for i in f.tolist() if i != a][:10]) for f, a in zip(found, asked, strict=True)], truth
        )
        if recall >= ENOUGH:
            break
    built_in = f"built in {seconds(built)}, {megabytes(memory)} of memory; M {HNSW_LINKS}, efSearch {effort}"
    yield Row("faiss HNSW alone, the limit", f"{_percentiles(times)}; recall@10 {recall:.4f}", built_in)


def _asked(
    engine: str,
    catalog: Catalog,
    settings: Settings,
    faces: np.ndarray,
    asked: np.ndarray,
    truth: list[set[int]],
    truth_small: list[set[int]],
    built: str,
) -> Iterator[Row]:
    methods: set[str] = set()

    def ask(face: int, conditions: FaceFilter) -> set[int]:
        answer = search_faces(catalog, settings, Query(faces=(face,), filter=conditions))
        methods.add(answer.method)
        return {match.face.face_id for match in answer.matches}

    everywhere, small = FaceFilter(), FaceFilter(collections=("small",))
    _timed(lambda face: ask(face, everywhere), asked[:20])  # code and statements warm
    _, first = _timed(lambda face: ask(face, everywhere), asked)
    found, times = _timed(lambda face: ask(face, everywhere), asked)
    yield Row(
        f"{engine}, the whole question",
        f"{_percentiles(times)}; recall@10 {_recall(found, truth):.4f}",
        f"{', '.join(methods)}; asked for the first time, partly from the disk: {_percentiles(first)}; {built}",
    )
    with catalog.read() as session:
        index = open_index(session, serving_version(session), settings)
        _, alone = _timed(lambda face: index.scan(session, faces[face - 1 : face], 84), asked)
        wall, cpu = perf_counter(), process_time()
        index.scan(session, faces[asked - 1], 84)
        each, each_cpu = (perf_counter() - wall) * 1000 / QUERIES, (process_time() - cpu) * 1000 / QUERIES
    yield Row(f"{engine}, of it the index alone, 84 candidates", _percentiles(alone))
    yield Row(f"{engine}, the same for {QUERIES} faces at once", f"{each:.2f} ms a face (CPU {each_cpu:.2f})")
    methods.clear()
    found, times = _timed(lambda face: ask(face, small), asked)
    recall = _recall(found, truth_small)
    yield Row(f"{engine}, a filter that keeps 1%", f"{_percentiles(times)}; recall@10 {recall:.4f}", ", ".join(methods))


def _timed(action: Callable[[int], Any], asked: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """What an action gives for each face, and its wall and CPU time (N, 2) in seconds."""
    found, times = [], []
    for face in asked.tolist():
        wall, cpu = perf_counter(), process_time()
        found.append(action(face))
        times.append((perf_counter() - wall, process_time() - cpu))
    return found, np.array(times)


def _percentiles(times: np.ndarray) -> str:
    (p50, cpu50), (p99, cpu99) = np.percentile(times, (50, 99), axis=0) * 1000
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms (CPU {cpu50:.1f}, {cpu99:.1f})"


def _recall(found: list[set[int]], truth: list[set[int]]) -> float:
    return float(np.mean([len(f & t) / len(t) for f, t in zip(found, truth, strict=True)]))


def _built_by_faiss(catalog: Catalog, settings: Settings) -> tuple[float, str]:
    start = perf_counter()
    with catalog.read() as session:
        open_index(session, serving_version(session), settings)
    took = perf_counter() - start
    files = [*(settings.home / "index").rglob("*.faiss")]
    open_projections._open.clear()  # the next process reads it from disk
    start = perf_counter()
    with catalog.read() as session:
        found = open_projections.open_projection(session, serving_version(session), files[0].parent if files else None)
    read = f"read back in {seconds(perf_counter() - start)}" if files else "not kept on disk"
    size = megabytes(sum(file.stat().st_size for file in files))
    return took, f"{size} of memory and disk, {read}; {found.note.probes} cells probed"


def _built_by_postgresql(catalog: Catalog, settings: Settings) -> tuple[float, str]:
    start = perf_counter()
    with catalog.read() as session:
        dimension = serving_version(session).dimension or 0
    with catalog.engine.begin() as connection:
        create_index(connection, crowd.EMBEDDER, dimension)
    took = perf_counter() - start
    with catalog.engine.connect() as connection:
        size = connection.scalar(text(f"SELECT pg_relation_size('{index_name(crowd.EMBEDDER)}')"))
    with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return took, f"{megabytes(size or 0)} of index"


def _kept(folder: Path, count: int, dimension: int) -> Path:
    return folder / f"{count}-{dimension}"


def _entered(catalog: Catalog, faces: np.ndarray) -> None:
    with catalog.read() as session:
        there = session.scalar(select(func.max(Embedding.face_id))) or 0
    if there == len(faces):
        return
    if there:
        raise SystemExit(f"{catalog.url}: {there:,} of {len(faces):,} faces were entered; remove it and begin anew")
    start = perf_counter()
    crowd.enter(catalog, faces, indexed=False)
    say(f"{catalog.engine.dialect.name}: {len(faces):,} faces entered in {perf_counter() - start:.0f} s")


@contextmanager
def _catalog(engine: str, kept: Path | None) -> Iterator[tuple[Catalog, Settings]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = PostgreSQL() if engine == "postgresql" else None
        if server is None and kept is not None:
            folder = kept
            folder.mkdir(parents=True, exist_ok=True)
        url = server.create() if server is not None else f"sqlite:///{folder}/catalog.db"
        catalog = Catalog(url)
        try:
            yield catalog, Settings(home=folder, database_url=url)
        finally:
            catalog.close()
            if server is not None:
                server.stop()


if __name__ == "__main__":
    main()
