"""How well and how fast people are grouped.

    python -m tests.benchmarks.grouping quality [--mirrored]   BCubed on the shared crops, in several nights and orders
    python -m tests.benchmarks.grouping speed                  1,000 new faces among 10 thousand and 1 million known people

`quality` needs the models of `visage models install` and embeds all crops (minutes). `speed` uses random people and the exact
search, whose time is stated apart: everything else should not grow with the catalog.
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from infra.settings import load_settings
from models.alignment import align
from models.detection.mtcnn import MTCNN
from tasks.calibration import Calibration, fit
from tasks.grouping import NOBODY, Exemplars, Faces, Policy, bcubed, exact_neighbours, group
from tasks.install import champion, load_network
from tasks.verification import pair_similarities, read_pairs
from tests.reference import shared

NIGHTS, ORDERS = (1, 5, 20), (0, 1, 2)
BATCH = 64
Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]


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
    detector = load_network(champion("mtcnn", settings.weights_folder, settings.mlflow_uri))
    embedder = champion("dlib-resnet", settings.weights_folder, settings.mlflow_uri)
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


@dataclass
class People:
    """What a catalog keeps from one night to the next."""

    policy: Policy
    exemplars: Exemplars
    identities: Ints
    photos: Ints
    founded: int = 0
    merges: int = 0
    proposals: int = 0
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def none(cls, policy: Policy, faces: Faces) -> "People":
        """The state before the first of `faces`, whose ids must be 0..N-1, has come."""
        nobody = Exemplars(faces.take(faces.ids[:0]), faces.ids[:0])
        return cls(policy, nobody, np.full(len(faces), NOBODY), faces.photos)

    def seen_together(self, identities: Ints) -> Ints:
        shown = np.flatnonzero(np.isin(self.identities, identities))
        shown = shown[np.argsort(self.photos[shown], kind="stable")]
        beside = self.photos[shown[1:]] == self.photos[shown[:-1]]  # a photo shows two faces at most here
        return np.stack([self.identities[shown[1:]][beside], self.identities[shown[:-1]][beside]], axis=1)

    def night(self, faces: Faces) -> None:
        start = perf_counter()
        result = group(faces, self.exemplars, self.policy, next_identity=self.founded, seen_together=self.seen_together)
        self.seconds.append(perf_counter() - start)
        self.founded += len(result.founded)
        self.merges += len(result.merges)
        self.proposals += len(result.proposals)
        for merge in result.merges:
            self.identities[self.identities == merge.absorbed] = merge.kept
        self.identities[faces.ids] = result.identities
        gone = [*result.exemplars.identities.tolist(), *(merge.absorbed for merge in result.merges)]
        stay = self.exemplars.take(np.flatnonzero(~np.isin(self.exemplars.identities, gone)))
        self.exemplars = Exemplars(
            stay.faces.followed_by(result.exemplars.faces),
            np.concatenate([stay.identities, result.exemplars.identities]),
        )


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
    near_twins(everyone, truth, policy)


def near_twins(everyone: Faces, truth: Ints, policy: Policy) -> None:
    """Put the most similar faces of different people into one photo each: no such pair may become one person."""
    similarities = everyone.embeddings @ everyone.embeddings.T
    similarities[truth[:, None] == truth] = -1
    nearest = similarities.argmax(axis=1)
    photos = everyone.photos.copy()
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(photos), dtype=bool)
    for a in np.argsort(-similarities.max(axis=1)).tolist():
        b = int(nearest[a])
        if free[a] and free[b]:
            free[[a, b]] = False
            photos[b] = photos[a]
            pairs.append((a, b))
    twins = Faces(everyone.ids, everyone.embeddings, everyone.quality, photos)
    for what, faces in (("apart", everyone), ("in one photo", twins)):
        people = People.none(policy, faces)
        order = np.random.default_rng(0).permutation(len(truth))[photos]  # whole photos come together
        for rows in np.array_split(np.argsort(order, kind="stable"), 5):
            people.night(faces.take(rows))
        merged = sum(people.identities[a] == people.identities[b] for a, b in pairs[:500])
        print(f"of the 500 most similar pairs of different people, {what}: {merged} became one person")


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

        def timed(queries: Vectors, k: int) -> tuple[Vectors, Ints]:
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--mirrored", action="store_true", help="add the embedding of the mirror image")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed()
    else:
        quality(arguments.mirrored)
