"""Verification on people whom the training does not see, at full size and at low resolutions."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.resolution import shrunk
from models.spec import ModelSpec
from tasks.embed import embed
from tasks.evaluation.verification import evaluate

SIDES = (16, 24, 32)  # px that crops are shrunk to; beside them they are judged as they are
FOLDS = 5
MIN_SAME = 2 * FOLDS  # pairs of one person
MAX_SAME = 3000  # pairs of one person, and as many of two: a second more would not tell more
BATCH = 256

Ints = NDArray[np.int64]


class TooFewPeople(ValueError):
    """The collection is too small to train and to judge; the message says what is missing."""


@dataclass(frozen=True)
class Split:
    """Rows of the faces that are trained on, with their class 0..`classes` - 1 each, and of the pairs (P, 2) to verify."""

    rows: Ints
    labels: Ints
    classes: int
    pairs: Ints
    same: NDArray[np.bool_]


def split(identities: Sequence[str], holdout: float, seed: int) -> Split:
    """Keep the share `holdout` of the people with two faces or more for verification, and train on everybody else.

    Who is kept depends on nothing but the names. As many pairs of two people are drawn as there are of one.

    Raises:
        TooFewPeople: if that leaves too few to train on, or fewer than 10 pairs of one person.
    """
    rows = by_person(identities)
    several = in_order_of_chance(name for name in rows if len(rows[name]) > 1)
    kept = several[: round(holdout * len(several))]
    trained = sorted(rows.keys() - set(kept))
    same = np.array([pair for name in kept for pair in combinations(rows[name], 2)], np.int64).reshape(-1, 2)
    if len(same) < MIN_SAME or len(kept) < 2 or len(trained) < 2:
        raise TooFewPeople(
            f"{len(rows)} people, {len(several)} of them with two faces or more: keeping {len(kept)} of these for verification "
            f"leaves {len(trained)} to train on and {len(same)} pairs of one person to verify; at least 2 and {MIN_SAME} are "
            "needed. Label more pictures, or change --holdout."
        )
    random = np.random.default_rng(seed)
    same = random.permutation(same)[:MAX_SAME]
    different = _different([rows[name] for name in kept], len(same), random)
    label = {name: index for index, name in enumerate(trained)}
    return Split(
        rows=np.array([row for name in trained for row in rows[name]], np.int64),
        labels=np.array([label[name] for name in trained for _ in rows[name]], np.int64),
        classes=len(trained),
        pairs=np.concatenate([same, different]),
        same=np.repeat([True, False], [len(same), len(different)]),
    )


def set_apart(identities: Sequence[str], share: float) -> tuple[Ints, Ints]:
    """Keep the share of the people for judging, one at least: rows of the faces to train on, and of theirs.

    Who is kept depends on nothing but the names.
    """
    rows = by_person(identities)
    people = in_order_of_chance(rows)
    count = max(1, round(share * len(people)))
    held, trained = ([row for name in names for row in rows[name]] for names in (people[:count], people[count:]))
    return np.array(trained, np.int64), np.array(held, np.int64)


def verify(network: nn.Module, spec: ModelSpec, crops: np.ndarray, held: Split, device: str) -> dict[str, float]:
    """Judge the pairs at each of SIDES and at full size: accuracy, TAR at FAR 1% and 0.1%, by metric/size.

    Both crops of a pair are shrunk to the side and enlarged again (bicubic).
    """
    rows, places = np.unique(held.pairs, return_inverse=True)
    places = places.reshape(held.pairs.shape)
    folds = np.arange(len(held.same)) % FOLDS
    metrics: dict[str, float] = {}
    for side in (*SIDES, None):
        vectors = np.concatenate(
            [
                embed(network, spec, _at(side, crops[part]), device)
                for part in np.split(rows, range(BATCH, len(rows), BATCH))
            ]
        )
        report = evaluate(np.einsum("pd,pd->p", *vectors[places].transpose(1, 0, 2)), held.same, folds)
        size = "full" if side is None else f"{side}px"
        metrics[f"accuracy/{size}"] = report.accuracy
        metrics |= {f"tar_at_far_{point.far_target:g}/{size}": point.tar for point in report.operating_points}
    return metrics


def _at(side: int | None, crops: np.ndarray) -> np.ndarray:
    if side is None:
        return crops
    return shrunk(torch.from_numpy(crops), [side] * len(crops), ["bicubic"] * len(crops)).numpy()


def by_person(identities: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each person's faces."""
    rows: dict[str, list[int]] = {}
    for row, identity in enumerate(identities):
        rows.setdefault(identity, []).append(row)
    return rows


def in_order_of_chance(names: Iterable[str]) -> list[str]:
    """The names in an order that depends on nothing but the names."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def _different(people: Sequence[Sequence[int]], count: int, random: np.random.Generator) -> Ints:
    """Draw pairs of faces of two people, none twice; fewer where there are not as many."""
    possible = sum(len(a) * len(b) for a, b in combinations(people, 2)) if len(people) < 100 else count
    pairs: set[tuple[int, int]] = set()
    while len(pairs) < min(count, possible):
        first, second = random.choice(len(people), 2, replace=False)
        a, b = random.choice(people[first]), random.choice(people[second])
        pairs.add((min(a, b), max(a, b)))
    return np.array(sorted(pairs), np.int64)
