"""The bridge: a linear map from one embedding version to another, so that one search sees faces that lack the newer one yet.

Fitted by ridge regression on faces that carry both (after Shen et al., "Towards Backward-Compatible Representation Learning",
CVPR 2020, arXiv:2003.11942, who name such maps as the baseline). What it loses is measured on faces it was not fitted on.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.identities.people import identities_of
from infra.catalog.search.vectors import vectors_of
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.tables.upgrades import Upgrade
from infra.catalog.versioning.upgrades import faces_with_both, visible_faces
from tasks.evaluation.calibration import MIN_PAIRS
from tasks.evaluation.verification import threshold_at_far

LEAST_FACES = 60  # with both versions; from fewer, neither a map nor its loss can be told
MOST_FACES = 20_000  # more fit no better: 40 rows for each of 512 numbers
HELD_BACK = 0.25
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the ridge, times the number of rows
MOST_PAIRED = 2_000  # faces among which pairs are made: 2 million pairs
FAR = 0.01
CHUNK = 10_000  # faces that are compared at a time

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """What a bridge loses, on held-back faces compared with native vectors of the others.

    `cosine`: mean between bridged and native vector of the same face. `agreement`: how often the most similar other face is the
    same one. `tar_*`: share of pairs of one person, as the former version groups them, above the threshold at which 1% of the
    native pairs of two people pass (`tar_native`), or 1% of bridged ones (`tar_bridged`); None where people are too few.
    """

    faces: int
    held_back: int
    cosine: float
    agreement: float
    tar_native: float | None
    tar_bridged: float | None
    same_pairs: int

    @property
    def tar_loss(self) -> float | None:
        if self.tar_native is None or self.tar_bridged is None:
            return None
        return self.tar_native - self.tar_bridged


@dataclass(frozen=True)
class Bridge:
    """A map (D, E) from former vectors to target vectors, and what it loses."""

    matrix: Vectors
    measures: Measures

    def __call__(self, former: Vectors) -> Vectors:
        """Carry vectors (N, D) over: (N, E), unit length."""
        return carry(self.matrix, former)


def carry(matrix: Vectors, former: Vectors) -> Vectors:
    """Carry vectors (N, D) over with a map (D, E): (N, E), unit length."""
    vectors: Vectors = former @ matrix
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors


def fit(former: Vectors, target: Vectors, people: NDArray[np.int64]) -> Bridge | None:
    """Fit a bridge to faces with both vectors (N, D) and (N, E), in random order; None if they are too few.

    `people` (N,): who each is, -1 for nobody knows.
    """
    if len(former) < LEAST_FACES:
        return None
    held = np.arange(len(former)) >= round((1 - HELD_BACK) * len(former))
    known, tried = ~held, np.arange(len(former)) % 4 == 0
    # The strength is chosen on a quarter of the faces that are not held back, then all of these are fitted.
    strength = max(
        STRENGTHS,
        key=lambda s: _cosine(_ridge(former[known & ~tried], target[known & ~tried], s), former, target, known & tried),
    )
    matrix = _ridge(former[known], target[known], strength)
    return Bridge(matrix, _measure(matrix, former, target, people, held))


def _ridge(former: Vectors, target: Vectors, strength: float) -> Vectors:
    x, y = former.astype(np.float64), target.astype(np.float64)
    # Per row of unit length a dimension has 1/D on average: the strength is relative to that.
    penalty = strength * len(x) / x.shape[1] * np.eye(x.shape[1])
    solved: Vectors = np.linalg.solve(x.T @ x + penalty, x.T @ y).astype(np.float32)
    return solved


def _cosine(matrix: Vectors, former: Vectors, target: Vectors, rows: NDArray[np.bool_]) -> float:
    return float((carry(matrix, former[rows]) * target[rows]).sum(axis=1).mean())


def _measure(
    matrix: Vectors, former: Vectors, target: Vectors, people: NDArray[np.int64], held: NDArray[np.bool_]
) -> Measures:
    rows = np.flatnonzero(held)[-MOST_PAIRED:]
    native, bridged, who = target[rows], carry(matrix, former[rows]), people[rows]
    to_native, to_bridged = native @ native.T, bridged @ native.T
    others = ~np.eye(len(rows), dtype=bool)
    nearest = [np.where(others, s, -2.0).argmax(axis=1) for s in (to_native, to_bridged)]
    known = (who[:, None] >= 0) & (who[None] >= 0) & np.triu(others)
    same = known & (who[:, None] == who[None])
    different = known & ~same
    enough = same.sum() >= MIN_PAIRS and different.sum() >= MIN_PAIRS
    tars = [_tar(s[same], s[different]) if enough else None for s in (to_native, to_bridged)]
    return Measures(
        faces=len(former),
        held_back=len(rows),
        cosine=float((native * bridged).sum(axis=1).mean()),
        agreement=float((nearest[0] == nearest[1]).mean()),
        tar_native=tars[0],
        tar_bridged=tars[1],
        same_pairs=int(same.sum()),
    )


def _tar(same: Vectors, different: Vectors) -> float:
    return float((same >= threshold_at_far(different.astype(np.float64), FAR)).mean())


def refit(catalog: Catalog, upgrade: Upgrade) -> Bridge | None:
    """Fit the bridge of an upgrade to the faces that carry both versions by now, and keep it; None if they are too few."""
    with catalog.read() as session:
        dimensions = [
            session.get_one(ModelVersionRow, v).dimension or 0 for v in (upgrade.former_id, upgrade.target_id)
        ]
        faces = faces_with_both(session, upgrade, MOST_FACES)
        (ids, former), (_, target) = (
            _sorted(vectors_of(session, version, dimension, faces))
            for version, dimension in zip((upgrade.former_id, upgrade.target_id), dimensions, strict=True)
        )
        identities = identities_of(session, upgrade.former_id, ids.tolist())
    people = np.array([identities.get(face, -1) for face in ids.tolist()], np.int64)
    order = np.random.default_rng(0).permutation(len(ids))
    bridge = fit(former[order], target[order], people[order])
    if bridge is not None:
        with catalog.write() as session:
            row = session.get_one(Upgrade, upgrade.id)
            row.bridge, row.bridge_measures = bridge.matrix.reshape(-1), asdict(bridge.measures)
    return bridge


def _sorted(found: tuple[NDArray[np.int64], Vectors]) -> tuple[NDArray[np.int64], Vectors]:
    order = np.argsort(found[0])
    return found[0][order], found[1][order]


def measures_of(upgrade: Upgrade) -> Measures | None:
    """What the bridge of an upgrade was measured to lose; None where there is none yet."""
    return None if upgrade.bridge_measures is None else Measures(**upgrade.bridge_measures)


@dataclass(frozen=True)
class Across:
    """Faces (N,) int64 by falling similarity (N,), and which of them (N,) bool were seen through the bridge."""

    ids: NDArray[np.int64]
    similarities: Vectors
    bridged: NDArray[np.bool_]


def nearest_across(session: Session, upgrade: Upgrade, query: Vectors, limit: int) -> Across:
    """The visible faces most similar to a vector (E,) of the target version, those without it seen through the bridge.

    All are compared. Nothing is found through a bridge that has not been built yet.
    """
    best = Across(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))
    for chunk in _chunks(session, upgrade, len(query)):
        ids = np.concatenate([best.ids, chunk.ids])
        similarities = np.concatenate([best.similarities, chunk.similarities @ query])
        order = np.lexsort((ids, -similarities))[:limit]
        best = Across(ids[order], similarities[order], np.concatenate([best.bridged, chunk.bridged])[order])
    return best


def _chunks(session: Session, upgrade: Upgrade, dimension: int) -> Iterator[Across]:
    """All visible faces, with their vectors in the place of similarities."""
    former = session.get_one(ModelVersionRow, upgrade.former_id).dimension or 0
    matrix = None if upgrade.bridge is None else upgrade.bridge.reshape(former, dimension)
    after = 0
    while len(faces := visible_faces(session, after, CHUNK)):
        after = int(faces[-1])
        ids, vectors = vectors_of(session, upgrade.target_id, dimension, faces)
        yield Across(ids, vectors, np.zeros(len(ids), bool))
        missing = np.setdiff1d(faces, ids)
        if matrix is not None and len(missing):
            ids, vectors = vectors_of(session, upgrade.former_id, former, missing)
            yield Across(ids, carry(matrix, vectors), np.ones(len(ids), bool))


def describe(measures: Measures | None) -> str:
    """What a bridge loses, in one line."""
    if measures is None:
        return f"not built yet (from {LEAST_FACES} faces with both versions on)"
    text = (
        f"cosine {measures.cosine:.3f}, same nearest face for {measures.agreement:.1%} of {measures.held_back} "
        "held-back faces"
    )
    if measures.tar_native is not None and measures.tar_bridged is not None:
        text += (
            f", TAR at FAR 1% {measures.tar_bridged:.3f} instead of {measures.tar_native:.3f} "
            f"({measures.same_pairs} pairs of one person)"
        )
    return text
