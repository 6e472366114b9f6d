"""How well and how fast people are grouped.

    python -m tests.benchmarks.grouping quality [--mirrored]   BCubed on the shared crops, in several nights and orders
    python -m tests.benchmarks.grouping limit [--mirrored]     the same with all faces at once, settings from other people
    python -m tests.benchmarks.grouping speed                  1,000 new faces among 10 thousand and 1 million known people
    python -m tests.benchmarks.grouping catalog [COUNT ...]    1,000 new faces in SQLite catalogs of so many faces

`quality` and `limit` need the models of `visage models install` and embed all crops (minutes). `limit` chooses the threshold on
one half of the people and judges it on the other: of average linkage over all pairs, as in the literature; of the same with
similarities lessened by how near strangers are (those of the other half), or whoever is near (of the same half); and of one
night. `speed` uses random people and the exact search, whose time is stated apart: everything else should not grow with the
catalog.
"""

import argparse
import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from sqlalchemy import update

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion
from infra.settings import Settings, load_settings
from models.alignment import align
from models.detection.mtcnn import MTCNN
from tasks.calibration import Calibration, Thresholds
from tasks.evaluation.calibration import fit
from tasks.evaluation.grouping import NIGHTS, ORDERS, People, near_twins
from tasks.evaluation.verification import pair_similarities, read_pairs
from tasks.group import group_version
from tasks.identities.grouping import BCubed, Exemplars, Faces, Policy, bcubed, exact_neighbours, group
from tasks.model_version import find_version, load_network
from tasks.search_index import open_index
from tests.crowd import EMBEDDER, enter, fill, people_of, vectors
from tests.reference import shared

BATCH = 64
NEW = 1000
SPLITS = (0, 1)
CUTS = np.linspace(0.3, 0.7, 81)  # of all unions, how many to make
NEAREST_STRANGERS = 50
Vectors = NDArray[np.float32]


def crops() -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and picture (H, W, 3) uint8 of every shared crop."""
    with tarfile.open(shared("data/lfw_grey_128.tar")) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield member.name, torch.from_numpy(np.array(Image.open(io.BytesIO(file.read())).convert("RGB")))


@torch.no_grad()
def embed_crops(mirrored: bool) -> dict[str, Vectors]:
    """Embed the most central face of every crop by the champions; `mirrored` adds the embedding of its mirror image."""
    settings = load_settings()
    detector = load_network(find_version("mtcnn", settings.weights_folder, settings.mlflow_uri))
    embedder = find_version("dlib-resnet", settings.weights_folder, settings.mlflow_uri)
    network, preprocess = load_network(embedder), embedder.spec.preprocess
    assert isinstance(detector, MTCNN)
    assert preprocess is not None
    embeddings: dict[str, Vectors] = {}
    items = list(crops())
    for start in range(0, len(items), BATCH):
        names, photos = zip(*items[start : start + BATCH], strict=True)
        found = detector.detect(photos)
        seen = [k for k, faces in enumerate(found) if len(faces)]
        places = [int(((found[k].boxes.view(-1, 2, 2).mean(dim=1) - 63.5).norm(dim=1)).argmin()) for k in seen]
        boxes = torch.stack([found[k].boxes[place] for k, place in zip(seen, places, strict=True)])
        landmarks = torch.stack([found[k].landmarks[place] for k, place in zip(seen, places, strict=True)])
        transforms = preprocess.template.transforms(boxes, landmarks)
        pixels = preprocess(align(photos, transforms, torch.tensor(seen), preprocess.template.size))
        vectors = network(pixels) + network(pixels.flip(3)) if mirrored else network(pixels)
        vectors = torch.nn.functional.normalize(vectors).numpy()
        embeddings.update({names[k]: vector for k, vector in zip(seen, vectors, strict=True)})
    return embeddings


def calibrate(embeddings: dict[str, Vectors]) -> Calibration:
    pairs = read_pairs(shared("data/lfw_pairs_folds_1_5.csv"))
    similarities = pair_similarities(pairs, embeddings)
    known = ~np.isnan(similarities)
    return fit(similarities[known], pairs.same[known], contract="benchmark", source="folds 1-5")


def quality(mirrored: bool) -> None:
    embeddings = embed_crops(mirrored)
    policy = Policy.of(calibrate(embeddings))
    names = np.array(sorted(embeddings))
    truth = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)[1]
    vectors = np.stack([embeddings[name] for name in names])
    ids = np.arange(len(names))
    everyone = Faces(ids, vectors, np.ones(len(names), np.float32), ids)
    print(f"{len(names)} faces of {truth.max() + 1} people, mirrored: {mirrored}, {policy}")
    half = np.random.default_rng(0).permutation(truth.max() + 1)[truth] < (truth.max() + 1) // 2
    for what, part in (("all", ids), ("half of the people", np.flatnonzero(half))):
        for nights in NIGHTS:
            for order in ORDERS[: 1 if nights == 1 else None]:
                people = People.none(policy, everyone)
                for rows in np.array_split(np.random.default_rng(order).permutation(part), nights):
                    people.night(everyone.take(rows))
                result = bcubed(people.identities[part], truth[part])
                print(
                    f"{what}: {nights:2} nights, order {order}: precision {result.precision:.4f} recall "
                    f"{result.recall:.4f} F {result.f:.4f}, {people.merges} merges, {people.proposals} proposals, "
                    f"{sum(people.seconds):.1f} s"
                )
    twins, merged = near_twins(everyone, truth, policy)
    print(f"of {twins} most similar pairs of different people, each in one photo: {merged} became one person")


def limit(mirrored: bool) -> None:
    embeddings = embed_crops(mirrored)
    names = np.array(sorted(embeddings))
    truth = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)[1]
    vectors = np.stack([embeddings[name] for name in names])
    propose = Policy.of(calibrate(embeddings)).propose
    for seed in SPLITS:
        half = np.random.default_rng(seed).permutation(truth.max() + 1)[truth] < (truth.max() + 1) // 2
        for chosen, judged in ((half, ~half), (~half, half)):
            for what, distances in (
                ("average linkage", lambda rows, others: 1 - vectors[rows] @ vectors[rows].T),
                ("less strangers", lambda rows, others: _less_strangers(vectors[rows], vectors[others])),
                ("less whoever is near", lambda rows, others: _less_strangers(vectors[rows], vectors[rows])),
            ):
                tree, other = (_tree(distances(rows, ~rows)) for rows in (chosen, judged))
                cut = max(np.quantile(tree[:, 2], CUTS), key=lambda c: _cut(tree, c, truth[chosen]).f)
                print(f"split {seed}, {what}: {_told(_cut(other, cut, truth[judged]))}", flush=True)
            joins = np.arange(propose, propose + 0.05, 0.0025)
            join = max(joins, key=lambda j: _one_night(vectors[chosen], truth[chosen], Policy(j, propose)).f)
            result = _one_night(vectors[judged], truth[judged], Policy(join, propose))
            print(f"split {seed}, one night, join {join:.4f}: {_told(result)}", flush=True)


def _less_strangers(faces: Vectors, strangers: Vectors) -> Vectors:
    """Distances (N, N), each similarity less half of how near both faces' nearest strangers are on average."""
    near = np.sort(faces @ strangers.T, axis=1)[:, -NEAREST_STRANGERS:].mean(axis=1)
    return 1 - faces @ faces.T + (near[:, None] + near) / 4


def _tree(distances: Vectors) -> NDArray[np.float64]:
    return linkage(distances[np.triu_indices(len(distances), 1)].astype(np.float64), "average")


def _cut(tree: NDArray[np.float64], distance: float, truth: NDArray[np.int64]) -> BCubed:
    return bcubed(fcluster(tree, distance, "distance").astype(np.int64), truth)


def _one_night(vectors: Vectors, truth: NDArray[np.int64], policy: Policy) -> BCubed:
    ids = np.arange(len(truth))
    everyone = Faces(ids, vectors, np.ones(len(ids), np.float32), ids)
    people = People.none(policy, everyone)
    people.night(everyone)
    return bcubed(people.identities, truth)


def _told(result: BCubed) -> str:
    return f"precision {result.precision:.4f} recall {result.recall:.4f} F {result.f:.4f}"


def speed() -> None:
    policy = Policy(join=0.6, propose=0.5)
    random = np.random.default_rng(0)
    for count in (10_000, 1_000_000):
        known = random.standard_normal((count, 128), dtype=np.float32)
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        new = known[random.choice(count, 1000, replace=False)]
        new += random.standard_normal(new.shape, dtype=np.float32) * np.float32(0.5 / np.sqrt(128))
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        ids = np.arange(count)
        exemplars = Exemplars(Faces(ids, known, np.ones(count, np.float32), ids), ids)
        arriving = Faces(count + np.arange(1000), new, np.ones(1000, np.float32), count + np.arange(1000))
        searched = 0.0
        search = exact_neighbours(known)

        def timed(queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
            nonlocal searched
            start = perf_counter()
            found = search(queries, k)  # noqa: B023 - called within this round
            searched += perf_counter() - start
            return found

        start = perf_counter()
        result = group(arriving, exemplars, policy, next_identity=count, neighbours=timed)
        total = perf_counter() - start
        print(
            f"{count:,} known people: {total - searched:.2f} s for 1,000 new faces, and {searched:.2f} s of exact "
            f"search; {(result.identities < count).mean():.1%} joined someone"
        )


def catalog(count: int) -> None:
    """A night's grouping in a catalog of `count` faces, ten of each person, all of them known: through the search index."""
    faces = vectors(count + NEW, 128)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder))
        opened = Catalog(settings.catalog_url)
        enter(opened, faces[:0])  # the collections and versions
        policy = Calibration(
            contract="embed", thresholds=Thresholds(far_1e_1=0.89, far_1e_2=0.92, far_1e_3=0.935, accuracy=0.91),
            slope=150, offset=-137, source="made up", same_pairs=9, different_pairs=9,
        )  # fmt: skip
        start = perf_counter()
        with opened.write() as session:
            session.execute(update(ModelVersion).values(calibration=policy.model_dump(mode="json")))
            fill(session, faces, people_of(count + NEW, 128)[:count] + 1)
        filled, start = perf_counter() - start, perf_counter()
        with opened.read() as session:
            open_index(session, session.get_one(ModelVersion, EMBEDDER), settings)
        indexed, start, worked = perf_counter() - start, perf_counter(), process_time()
        grouped = group_version(opened, EMBEDDER, 2, settings)
        print(
            f"{count:,} faces: {perf_counter() - start:.2f} s, {process_time() - worked:.2f} s of them at work, for {NEW:,} "
            f"new ones ({grouped.grouped:,} placed, {grouped.merged} merges of people who are two); once {indexed:.1f} s for "
            f"the index, {filled:.1f} s to fill the catalog",
            flush=True,
        )
        opened.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "limit", "speed", "catalog"))
    parser.add_argument("counts", nargs="*", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--mirrored", action="store_true", help="add the embedding of the mirror image")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed()
    elif arguments.what == "catalog":
        for count in arguments.counts:
            catalog(count)
    elif arguments.what == "limit":
        limit(arguments.mirrored)
    else:
        quality(arguments.mirrored)
