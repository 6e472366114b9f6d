"""Who is who: new faces join the people already known, found new ones, or stay alone.

Agglomerative clustering (`agglomeration.py`) in which the people known so far take part as ready-made groups, represented
by their best exemplars; candidates come from nearest neighbours. A night costs what is new: beside the search and one pass
over the exemplars' ids, people without a neighbour among the new faces are not looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import faiss
import numpy as np

from tasks.identities.agglomeration import (
    NOBODY,
    Exemplars,
    Faces,
    Groups,
    Ints,
    Merge,
    Policy,
    Vectors,
    adopt,
    agglomerate,
)
from tasks.identities.hubness import COHORT, FEWEST, hubness

__all__ = [
    "NOBODY",
    "BCubed",
    "Exemplars",
    "Faces",
    "Grouping",
    "Merge",
    "Neighbours",
    "Policy",
    "SeenTogether",
    "bcubed",
    "exact_neighbours",
    "group",
    "nearest_people",
]

Neighbours = Callable[[Vectors, int], tuple[Vectors, Ints]]
"""(queries (Q, D), k) -> similarities (Q, k) and rows (Q, k) of what was searched, in any order; row -1 where none is left."""

SeenTogether = Callable[[Ints], Ints]
"""Identities (I,) -> pairs of them (S, 2) that appear in one photo, in any of their faces."""

NEAREST = 32  # new faces considered per new face
ROUNDS = 2  # made again in a young catalog, whose people are among the new faces: each finds better who is a stranger
PEOPLE = 2  # known people considered per new face: those whose exemplars are nearest
NO_IDS = np.empty(0, dtype=np.int64)
NO_PAIRS = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class Grouping:
    """What a night changes.

    `identities` (N,) of the new faces, NOBODY where left alone; `founded` (F,): those that are new. `merges`: known identities
    that became one. `proposals`: pairs for a person to decide, closest first. `exemplars`: all exemplars of every identity
    that changed, in place of those it had.
    """

    identities: Ints
    founded: Ints
    merges: tuple[Merge, ...]
    proposals: tuple[Merge, ...]
    exemplars: Exemplars


@dataclass(frozen=True)
class BCubed:
    """Agreement of a grouping with the truth, averaged over faces, 0..1 each; `f` is the harmonic mean."""

    precision: float
    recall: float
    f: float


def bcubed(predicted: Ints, truth: Ints) -> BCubed:
    """Compare identities (N,) with the true ones (N,); faces of NOBODY are each alone.

    For every face: the share of its group that is its person, and of its person that is in its group (Bagga and Baldwin,
    LREC 1998; Amigo et al. 2009, Section 3.4).
    """
    if predicted.shape != truth.shape or predicted.ndim != 1 or not len(truth):
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} must match: (N,) with N > 0")
    alone = predicted == NOBODY
    groups = np.where(alone, predicted.max() + 1 + np.arange(len(predicted)), predicted)
    _, a, in_group = np.unique(groups, return_inverse=True, return_counts=True)
    _, b, in_person = np.unique(truth, return_inverse=True, return_counts=True)
    _, both, in_both = np.unique(a * len(in_person) + b, return_inverse=True, return_counts=True)
    precision, recall = (in_both[both] / in_group[a]).mean(), (in_both[both] / in_person[b]).mean()
    return BCubed(float(precision), float(recall), float(2 * precision * recall / (precision + recall)))


def exact_neighbours(embeddings: Vectors) -> Neighbours:
    """Search (E, D) vectors by computing every inner product."""

    def search(queries: Vectors, k: int) -> tuple[Vectors, Ints]:
        k = min(k, len(embeddings))
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        return faiss.knn(queries, embeddings, k, metric=faiss.METRIC_INNER_PRODUCT)

    return search


def group(
    faces: Faces,
    exemplars: Exemplars,
    policy: Policy,
    *,
    next_identity: int,
    neighbours: Neighbours | None = None,
    cohort: Vectors | None = None,
    seen_together: SeenTogether | None = None,
    settled: Ints = NO_IDS,
    cannot_link: Ints = NO_PAIRS,
) -> Grouping:
    """Place new faces among the people that `exemplars` stand for. The order of the input does not matter.

    Two faces of one photo are never one person. Exemplars tell only of their own photos, so `seen_together` is asked, once,
    about the identities that the new faces concern. `cannot_link` (C, 2) are pairs of face ids, new or exemplars, an
    exemplar speaking for its identity: what people decided; a pair with a face that is not at hand is ignored. Two
    `settled` identities (those that a person named or confirmed) are never merged, only proposed. New identities are
    numbered from `next_identity`, by their smallest face id. `neighbours` searches the exemplars; by default exactly.
    `cohort` (C, D) are the `representatives` of all known people, by default of those that `exemplars` stand for.
    Exemplars of people without any similar to a new face may be left out. A first run is best given in portions of some
    thousand faces, whole photos each: time grows with the square of how many new faces are one person.

    Raises:
        ValueError: for vectors that are not finite and of unit length, qualities outside 0..1, ids that are not unique, or
            pairs that are one person already.
    """
    if exemplars.faces.embeddings.shape[1:] != faces.embeddings.shape[1:]:
        shapes = f"{faces.embeddings.shape} and {exemplars.faces.embeddings.shape}"
        raise ValueError(f"new faces and exemplars are not of one dimension: {shapes}; are they of one contract?")
    if len(exemplars) and exemplars.identities.max() >= next_identity:
        raise ValueError(f"next_identity is {next_identity}, but identity {exemplars.identities.max()} exists")
    _check(faces, "new faces")
    search = exact_neighbours(exemplars.faces.embeddings) if neighbours is None else neighbours
    near_new, near_exemplars = _candidates(faces, exemplars, policy, search)
    touched = np.unique(exemplars.identities[near_exemplars[:, 1]])
    known = exemplars.take(np.flatnonzero(np.isin(exemplars.identities, touched)))
    pool = known.faces.followed_by(faces)
    _check(pool, "new faces and exemplars")
    unit_of_identity = np.searchsorted(touched, exemplars.identities[near_exemplars[:, 1]])
    together = NO_PAIRS if seen_together is None else seen_together(touched)
    if not np.isin(together, touched).all():
        raise ValueError("seen_together named identities that it was not asked about")

    def arranged(strangers: Vectors) -> Groups:
        hubs = hubness(pool.embeddings, strangers, policy.join)
        groups = Groups(faces, known, policy, frozenset(settled.tolist()), hubs)
        groups.link(np.stack([near_exemplars[:, 0] + len(touched), unit_of_identity], axis=1))
        groups.link(near_new + len(touched))
        groups.keep_apart(cannot_link, np.searchsorted(touched, together))
        agglomerate(groups, policy.join)
        adopt(groups, policy.join)
        return groups

    strangers = cohort = representatives(exemplars) if cohort is None else cohort
    groups = arranged(strangers)
    for _ in range(ROUNDS if len(cohort) < COHORT else 0):
        found = np.concatenate([cohort, _newcomers(groups)])[:COHORT]
        if len(found) < FEWEST or np.array_equal(found, strangers):
            break
        strangers = found
        groups = arranged(strangers)
    return _result(groups, next_identity)


def representatives(exemplars: Exemplars) -> Vectors:
    """One face each, the first, of the people known longest, COHORT at most: (C, D). What `group` takes for a cohort."""
    order = np.lexsort((exemplars.faces.ids, exemplars.identities))
    first = np.unique(exemplars.identities[order], return_index=True)[1]
    return exemplars.faces.embeddings[order[first[:COHORT]]]


def _newcomers(groups: Groups) -> Vectors:
    """The best face each of the people that nobody knew before, (C, D)."""
    roots = [
        unit
        for unit in range(groups.known, len(groups.parents))
        if groups.parents[unit] == unit and groups.counts[unit] and groups.people[unit] == NOBODY
    ]
    return groups.pool.embeddings[[groups.best(root)[0] for root in sorted(roots, key=lambda r: groups.keys[r])]]


def _candidates(new: Faces, exemplars: Exemplars, policy: Policy, search: Neighbours) -> tuple[Ints, Ints]:
    """Pairs (L, 2) that are similar enough to compare: rows of two new faces, and rows of a new face and an exemplar."""
    founders = np.flatnonzero(new.quality >= policy.founding)
    similarities, rows = exact_neighbours(new.embeddings[founders])(new.embeddings, NEAREST + 1)
    face, place = np.nonzero(similarities >= policy.propose)
    among_new = np.stack([face, founders[rows[face, place]]], axis=1)
    similarities, rows = search(new.embeddings, PEOPLE * policy.exemplars)  # so many people are among them at least
    face, place = np.nonzero((similarities >= policy.propose) & (rows >= 0))
    near = rows[face, place]
    chosen = nearest_people(face, exemplars.identities[near], similarities[face, place], PEOPLE)
    return among_new, np.stack([face[chosen], near[chosen]], axis=1)


def nearest_people(faces: Ints, identities: Ints, similarities: Vectors, most: int, slack: float = 0.0) -> Ints:
    """Indices of the closest comparison of each (face, person) pair, for the `most` closest people of each face.

    Comparisons with NOBODY do not count. Equally near people go by their number. `slack`: people who are farther
    than the last of these by less than that count as well.
    """
    far = -np.round(similarities, 6)
    order = np.lexsort((far, identities, faces))
    order = order[identities[order] != NOBODY]
    begins = np.diff(faces[order], prepend=-1) | np.diff(identities[order], prepend=NOBODY) != 0
    nearest = order[begins]
    nearest = nearest[np.lexsort((identities[nearest], far[nearest], faces[nearest]))]
    first = np.searchsorted(faces[nearest], faces[nearest])
    # The last comparison that counts for each face; where there are fewer, another face's, since then all count anyway.
    last = nearest[np.minimum(first + most - 1, len(nearest) - 1)]
    rank = np.arange(len(nearest)) - first
    return nearest[(rank < most) | (far[nearest] < far[last] + slack)]


def _result(groups: Groups, next_identity: int) -> Grouping:
    new = range(groups.known, len(groups.parents))
    founding = sorted(
        {r for r in map(groups.root, new) if groups.people[r] == NOBODY and groups.counts[r]},
        key=lambda r: groups.keys[r],
    )
    for offset, root in enumerate(founding):
        groups.people[root] = next_identity + offset
    identities = np.array([groups.people[groups.root(unit)] for unit in new], dtype=np.int64)
    grown = {
        r for r in range(len(groups.parents)) if groups.parents[r] == r and groups.versions[r] and groups.counts[r]
    }
    changed = sorted(grown | set(founding), key=lambda r: groups.people[r])
    standing = [(groups.people[root], row) for root in changed for row in groups.best(root)]
    owners, rows = np.array(standing, dtype=np.int64).reshape(-1, 2).T
    return Grouping(
        identities=identities,
        founded=np.arange(next_identity, next_identity + len(founding)),
        merges=_resolved(groups),
        proposals=_proposals(groups, changed),
        exemplars=Exemplars(groups.pool.take(rows), owners),
    )


def _resolved(groups: Groups) -> tuple[Merge, ...]:
    """The merges, each naming the identity that is left in the end."""
    into = {merge.absorbed: merge.kept for merge in groups.merges}

    def final(person: int) -> int:
        while person in into:
            person = into[person]
        return person

    resolved = [replace(merge, kept=final(merge.kept)) for merge in groups.merges]
    return tuple(sorted(resolved, key=lambda merge: (merge.kept, merge.absorbed)))


def _proposals(groups: Groups, changed: list[int]) -> tuple[Merge, ...]:
    """For every changed group, the closest other that it may be the same person as."""
    pairs: set[tuple[int, int]] = set()
    for root in changed:
        others = groups.neighbours(root)
        ranked = sorted(zip((-groups.closeness(root, others)).tolist(), others.tolist(), strict=True))
        for distance, other in ranked:
            if -distance < groups.policy.propose:
                break
            if groups.compatible(root, other):
                pairs.add((min(root, other), max(root, other)))
                break
    proposals = [groups.merge(a, b) for a, b in pairs]
    return tuple(sorted(proposals, key=lambda merge: (-merge.closeness, merge.kept, merge.absorbed)))


def _check(faces: Faces, what: str) -> None:
    shapes = {len(faces.ids), len(faces.embeddings), len(faces.quality), len(faces.photos)}
    if len(shapes) != 1 or faces.embeddings.ndim != 2:
        raise ValueError(f"{what}: ids, embeddings (N, D), quality and photos have lengths {sorted(shapes)}")
    if len(np.unique(faces.ids)) != len(faces):
        raise ValueError(f"{what}: a face id appears twice")
    lengths = np.linalg.norm(faces.embeddings, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))  # NaN is wrong too
    if len(wrong):
        raise ValueError(f"{what}: the embedding of face {faces.ids[wrong[0]]} has length {lengths[wrong[0]]}, not 1")
    wrong = np.flatnonzero(~((faces.quality >= 0) & (faces.quality <= 1)))
    if len(wrong):
        raise ValueError(f"{what}: the quality of face {faces.ids[wrong[0]]} is {faces.quality[wrong[0]]}, not in 0..1")
