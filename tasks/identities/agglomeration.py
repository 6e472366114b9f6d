"""Groups of faces that unite while they are close: the engine of `tasks.identities.grouping`.

A group is judged as a whole, never by one look-alike, so two people are not chained together. The closeness of two groups is
the geometric mean of average linkage (mean similarity over all pairs, hard on people who look different from day to day) and
the cosine of the two means (too easy on large groups). With s the sum of a group's n unit vectors it is
s . s' / sqrt(n |s| n' |s'|), so no matrix of all pairs is ever made. BCubed F at the best threshold of each, on LFW's crops
embedded by dlib's network: average linkage 0.928, cosine of means 0.927, this 0.945; and 0.953 lessened by the mean of both
groups' hubness (`tasks.identities.hubness`).
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.catalog.identities.enforcement import EXEMPLARS, FOUNDING_QUALITY
from tasks.calibration import Calibration

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]

NOBODY = -1  # identity of a face that joined nobody and may not found
EVIDENCE = 3  # pairs shown for a merge
JOIN_PRIOR, PROPOSE_PRIOR = 1 / 100, 1 / 50  # by BCubed on LFW's crops, see tests/benchmarks/grouping.py


@dataclass(frozen=True)
class Faces:
    """`ids` (N,) int64; unit `embeddings` (N, D) float32; `quality` (N,) in 0..1; `photos` (N,) int64."""

    ids: Ints
    embeddings: Vectors
    quality: NDArray[np.float32]
    photos: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints) -> "Faces":
        return Faces(self.ids[rows], self.embeddings[rows], self.quality[rows], self.photos[rows])

    def followed_by(self, other: "Faces") -> "Faces":
        return Faces(
            *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__dataclass_fields__)
        )


@dataclass(frozen=True)
class Exemplars:
    """Faces that stand for people, and for whom: `identities` (E,) int64, not negative."""

    faces: Faces
    identities: Ints

    def __len__(self) -> int:
        return len(self.faces)

    def take(self, rows: Ints) -> "Exemplars":
        return Exemplars(self.faces.take(rows), self.identities[rows])


@dataclass(frozen=True)
class Policy:
    """When faces are one person.

    `join`: closeness from which two groups become one. `propose`: closeness from which a person is asked, and similarity of
    two faces from which their groups are compared at all. `founding`: least quality of a face that may found a group or be an
    exemplar; others only join. `exemplars`: how many faces stand for a person, best first whenever they came.
    """

    join: float
    propose: float
    founding: float = FOUNDING_QUALITY
    exemplars: int = EXEMPLARS

    def __post_init__(self) -> None:
        if not 0 < self.propose <= self.join <= 1:
            raise ValueError(f"0 < propose <= join <= 1 does not hold: {self}")
        if not 0 <= self.founding <= 1 or self.exemplars < 1:
            raise ValueError(f"founding must be in 0..1 and exemplars at least 1: {self}")

    @classmethod
    def of(cls, calibration: Calibration) -> "Policy":
        """The policy for a model, from its calibration on pairs: where one person is as likely as two, after these priors."""
        join, propose = (calibration.similarity(0.5, prior) for prior in (JOIN_PRIOR, PROPOSE_PRIOR))
        return cls(join=min(join, 1.0), propose=min(max(propose, 1e-3), 1.0))


@dataclass(frozen=True)
class Merge:
    """Two identities that look like one. `evidence`: nearest pairs (face of kept, face of absorbed, similarity)."""

    kept: int
    absorbed: int
    closeness: float
    evidence: tuple[tuple[int, int, float], ...]


class Groups:
    """Units (known identities, then new faces) as they are joined into groups; a group goes by one of its units, the root."""

    def __init__(
        self,
        new: Faces,
        known: Exemplars,
        policy: Policy,
        settled: frozenset[int],
        hubness: Vectors | None = None,
    ) -> None:
        """`hubness` (P,) of the known faces, then of the new ones; None: all alike."""
        touched, unit = np.unique(known.identities, return_inverse=True)
        self.policy, self.settled, self.known = policy, settled, len(touched)
        self.pool = known.faces.followed_by(new)
        order = np.lexsort((self.pool.ids, -self.pool.quality))
        self.ranks = np.argsort(order).tolist()  # of every face, by what `best` says
        self.unit = np.concatenate([unit, len(touched) + np.arange(len(new))])  # of every face in the pool
        founds = np.concatenate([np.ones(len(known), dtype=bool), new.quality >= policy.founding])
        units = len(touched) + len(new)
        self.sums = np.zeros((units, self.pool.embeddings.shape[1]))
        founding = np.flatnonzero(founds)[np.argsort(self.unit[founds], kind="stable")]
        held, first = np.unique(self.unit[founding], return_index=True)
        self.sums[held] = np.add.reduceat(self.pool.embeddings[founding], first, axis=0, dtype=np.float64)
        self.counts = np.bincount(self.unit[founds], minlength=units)  # 0: a face that may only join
        self.scales = _scale(self.sums, self.counts)
        self.hubness = np.zeros(len(self.pool)) if hubness is None else hubness.astype(np.float64)
        self.hubs = np.bincount(self.unit[founds], self.hubness[founds], minlength=units)  # sums over a group's faces
        self.parents = list(range(units))
        self.versions = [0] * units
        self.people = [*touched.tolist(), *[NOBODY] * len(new)]
        self.members: list[list[int]] = [[] for _ in range(units)]  # rows of the pool
        self.photos: list[set[int]] = [set() for _ in range(units)]
        for row, (u, photo) in enumerate(zip(self.unit.tolist(), self.pool.photos.tolist(), strict=True)):
            self.photos[u].add(photo)
            if founds[row]:
                self.members[u].append(row)
        self.keys = np.full(units, np.iinfo(np.int64).max)  # smallest face id: what breaks ties
        np.minimum.at(self.keys, self.unit, self.pool.ids)
        self.links: list[set[int]] = [set() for _ in range(units)]
        self.apart: list[set[int]] = [set() for _ in range(units)]
        self.merges: list[Merge] = []

    def root(self, unit: int) -> int:
        while self.parents[unit] != unit:
            self.parents[unit] = self.parents[self.parents[unit]]
            unit = self.parents[unit]
        return unit

    def link(self, pairs: Ints) -> None:
        """Make units (L, 2) comparable."""
        for a, b in pairs.tolist():
            self.links[a].add(b)
            self.links[b].add(a)

    def keep_apart(self, cannot_link: Ints, seen_together: Ints) -> None:
        """Keep the units of pairs of face ids apart, and pairs of units that share a photo.

        Raises:
            ValueError: naming faces that are to be two people, and stand for one.
        """
        unit = dict(zip(self.pool.ids.tolist(), self.unit.tolist(), strict=True))
        for a, b in cannot_link.tolist():
            if a in unit and b in unit and not self.separate(unit[a], unit[b]):
                raise ValueError(f"faces {a} and {b} must not be one person, but both stand for one identity")
        for first, second in seen_together.tolist():
            self.separate(first, second)

    def separate(self, a: int, b: int) -> bool:
        """Never join the groups of two units; False if they are one already."""
        a, b = self.root(a), self.root(b)
        if a != b:
            self.apart[a].add(b)
            self.apart[b].add(a)
        return a != b

    def neighbours(self, root: int) -> Ints:
        """Roots of the groups that this one is linked to, those of faces that may only join left out."""
        linked = {self.root(unit) for unit in self.links[root]} - {root}
        self.links[root] = linked
        others = np.fromiter(linked, dtype=np.int64, count=len(linked))
        others.sort()
        return others[self.counts[others] > 0]

    def closeness(self, root: int, others: Ints) -> Floats:
        alike: Floats = self.sums[others] @ self.sums[root] / (self.scales[others] * self.scales[root])
        return alike - (self.mean_hubness(others) + self.mean_hubness(root)) / 2

    def mean_hubness(self, roots: Ints | int) -> Floats:
        hubness: Floats = self.hubs[roots] / np.maximum(self.counts[roots], 1)
        return hubness

    def compatible(self, a: int, b: int) -> bool:
        return self.photos[a].isdisjoint(self.photos[b]) and b not in {self.root(unit) for unit in self.apart[a]}

    def both_settled(self, a: int, b: int) -> bool:
        return self.people[a] in self.settled and self.people[b] in self.settled

    def join(self, a: int, b: int) -> int:
        """Unite two groups and return the root; two known people become a merge."""
        if self.people[a] != NOBODY and self.people[b] != NOBODY:
            self.merges.append(self.merge(a, b))
            person = self.merges[-1].kept
        else:
            person = max(self.people[a], self.people[b])
        if len(self.links[a]) + len(self.members[a]) < len(self.links[b]) + len(self.members[b]):
            a, b = b, a
        self.parents[b] = a
        self.versions[a] += 1
        self.people[a] = person
        self.keys[a] = min(self.keys[a], self.keys[b])
        self.sums[a] += self.sums[b]
        self.counts[a] += self.counts[b]
        self.hubs[a] += self.hubs[b]
        self.scales[a] = _scale(self.sums[a], self.counts[a])
        for attribute in (self.links, self.apart, self.photos):
            attribute[a] |= attribute[b]
            attribute[b] = set()
        self.members[a] += self.members[b]
        self.members[b] = []
        return a

    def merge(self, a: int, b: int) -> Merge:
        """Describe the union of two groups of people: the settled one, else the older, is kept."""
        if (self.people[b] not in self.settled, self.people[b]) < (self.people[a] not in self.settled, self.people[a]):
            a, b = b, a
        mine, yours = self.best(a), self.best(b)
        products = self.pool.embeddings[mine] @ self.pool.embeddings[yours].T
        pairs = [np.unravel_index(place, products.shape) for place in np.argsort(-products, axis=None)[:EVIDENCE]]
        evidence = tuple(
            (int(self.pool.ids[mine[i]]), int(self.pool.ids[yours[j]]), float(products[i, j])) for i, j in pairs
        )
        return Merge(self.people[a], self.people[b], float(self.closeness(a, np.array([b]))[0]), evidence)

    def best(self, root: int) -> list[int]:
        """Rows of the faces that stand for a group: highest quality first, then smallest id."""
        return sorted(self.members[root], key=self.ranks.__getitem__)[: self.policy.exemplars]


def _scale(sums: Floats, counts: NDArray[np.int64]) -> Floats:
    """sqrt(n |s|): what a group's sum is divided by in closeness; 1 for a group of no or one face."""
    scale: Floats = np.sqrt(np.maximum(counts, 1) * np.linalg.norm(sums, axis=-1))
    return np.where(scale > 0, scale, 1.0)


def agglomerate(groups: Groups, join: float) -> None:
    """Join the closest compatible groups until none is close enough; ties go to the smallest face ids.

    The heap holds the best partner of every group as it was when the group last changed, so a pair stands there under the
    name of whichever changed last; an entry whose partner has changed since is looked up anew.
    """
    heap: list[tuple[float, int, int, int, int, int, int]] = []

    def offer(a: int) -> None:
        others = groups.neighbours(a)
        closeness = np.round(groups.closeness(a, others), 6)  # beyond it lies the rounding of sums
        near = np.flatnonzero(closeness >= join)
        for place in near[np.lexsort((groups.keys[others[near]], -closeness[near]))].tolist():
            b = int(others[place])
            if groups.compatible(a, b) and not groups.both_settled(a, b):
                low, high = sorted((int(groups.keys[a]), int(groups.keys[b])))
                heapq.heappush(heap, (-closeness[place], low, high, a, b, groups.versions[a], groups.versions[b]))
                return

    for root in range(len(groups.parents)):
        if groups.parents[root] == root and groups.counts[root]:
            offer(root)
    while heap:
        *_, a, b, version_a, version_b = heapq.heappop(heap)
        if groups.parents[a] != a or groups.versions[a] != version_a:
            continue
        alive = groups.parents[b] == b and groups.versions[b] == version_b
        offer(groups.join(a, b) if alive else a)


def adopt(groups: Groups, join: float) -> None:
    """Let the faces that may only join do so, the closest first, one group each."""
    offers = []
    for row in range(len(groups.pool)):
        unit = int(groups.unit[row])
        if groups.counts[groups.root(unit)] == 0:
            others = groups.neighbours(groups.root(unit))
            similarities = groups.sums[others] @ groups.pool.embeddings[row] / groups.scales[others]
            similarities -= (groups.mean_hubness(others) + groups.hubness[row]) / 2
            offers += [
                (-round(s, 6), int(groups.pool.ids[row]), int(groups.keys[o]), unit, o)
                for s, o in zip(similarities.tolist(), others.tolist(), strict=True)
                if s >= join
            ]
    for *_, unit, other in sorted(offers):
        follower, leader = groups.root(unit), groups.root(other)
        if groups.counts[follower] == 0 and groups.compatible(follower, leader):
            groups.join(leader, follower)
