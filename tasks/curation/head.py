"""A small linear head, learned from what is clean, in whose space people differ from themselves alike in all directions."""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

STRANGERS = 200_000  # pairs across identities in the statistics
SHRINK = 0.1  # of the head's within-class covariance towards a multiple of the identity
LEAST_HEAD = 200  # identities of two pictures or more, from which on a head is tried


def better_space(vectors: Vectors, labels: Ints, clean: Bools, seed: int) -> Vectors:
    """The vectors in a space in which people differ from themselves alike in all directions, if that holds on others too."""
    counts = np.bincount(labels[clean], minlength=labels.max() + 1)
    useful = np.flatnonzero(clean & (counts[labels] > 1))
    people = np.unique(labels[useful])
    if len(people) < LEAST_HEAD:
        return vectors
    half = np.isin(labels[useful], np.random.default_rng(seed).permutation(people)[: len(people) // 2])
    gains = []
    for fitted, judged in ((useful[half], useful[~half]), (useful[~half], useful[half])):
        head = _head(vectors[fitted], labels[fitted])
        gains.append(
            _separation(_carried(vectors[judged], *head), labels[judged]) - _separation(vectors[judged], labels[judged])
        )
    return _carried(vectors, *_head(vectors[useful], labels[useful])) if min(gains) > 0 else vectors


def _head(vectors: Vectors, labels: Ints) -> tuple[Vectors, Vectors]:
    """Centre (D,) and matrix (D, D) that whiten what pictures of one person differ by."""
    people, places = np.unique(labels, return_inverse=True)
    means = np.zeros((len(people), vectors.shape[1]))
    np.add.at(means, places, vectors)
    means /= np.bincount(places)[:, None]
    apart = vectors - means[places]
    within = apart.T @ apart / max(len(vectors) - len(people), 1)
    within = (1 - SHRINK) * within + SHRINK * np.trace(within) / len(within) * np.eye(len(within))
    values, axes = np.linalg.eigh(within)
    return vectors.mean(axis=0), (axes / np.sqrt(values) @ axes.T).astype(np.float32)


def _carried(vectors: Vectors, centre: Vectors, matrix: Vectors) -> Vectors:
    moved = (vectors - centre) @ matrix
    carried: Vectors = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return carried


def _separation(vectors: Vectors, labels: Ints) -> float:
    """Share of pairs of one person that are more similar than all but one in a thousand pairs of strangers."""
    order = np.argsort(labels, kind="stable")
    beside = labels[order[1:]] == labels[order[:-1]]
    same = (vectors[order[1:][beside]] * vectors[order[:-1][beside]]).sum(axis=1)
    a, b = np.random.default_rng(0).integers(0, len(labels), (2, STRANGERS))
    apart = labels[a] != labels[b]
    across = (vectors[a[apart]] * vectors[b[apart]]).sum(axis=1)
    return float((same >= np.quantile(across, 1 - 1e-3)).mean())
