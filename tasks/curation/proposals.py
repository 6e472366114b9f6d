"""Curation: which pictures of a labelled identity do not belong there, which identities are one person, what is a copy.

After the cleaning of WebFace260M by self-training (Zhu and others, CVPR 2021, Section 3.3): clean within identities and between
them, learn from what is clean, and repeat until nothing changes. There a network is trained anew in each round; here the
statistics of similarities are, and a small linear head where held-out identities show that it helps. All of it is proposals.

Within an identity, pictures are grouped by average linkage, and the largest group is its core. How similar strangers are, the
many pairs across identities tell; how similar pictures of one person are, the pairs within: in the first round less the
strangers that must be among them, later those that are clean. What looks like another identity is told by how similar a picture
is to the most similar of all others when it is none of them: the extreme of many comparisons, not the value of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm

from tasks.curation.head import STRANGERS, Bools, Ints, Vectors, better_space

ROUNDS = 6  # at most; it is stable after three or four
SIZES = (
    3  # identities of 1, of 2, and of 3 pictures or more are judged apart: the more pictures, the surer their centre
)
PAIRS = 40  # of one identity in the statistics, so that large ones do not decide alone
CHUNK = 256
HOME_FAR = 1e-2  # how often a stranger may look at home: of pictures that do not fit where they are
MERGE_FAR = 1e-4  # and of pictures that do: so many of them would have to be wrong for identities to be merged
BODY = (0.25, 0.6)  # quantiles through which the distribution of the most similar stranger is laid
LEAST_NULL = 20  # comparisons, under which nothing is said of extremes


class Verdict(StrEnum):
    """What is wrong with a picture's label."""

    ELSEWHERE = "elsewhere"  # it looks like another identity, which is named
    STRANGER = "stranger"  # it looks like nobody else either
    DOUBTFUL = "doubtful"  # the pictures of its identity contradict each other, and none is in the majority


@dataclass(frozen=True)
class Finding:
    """A picture that does not belong to its identity. Similarities are to the centre of an identity's core.

    `beside` and `like` are the pictures of its own and of the other identity that are most like it; -1: there is none.
    """

    row: int
    verdict: Verdict
    own: float
    beside: int
    other_label: int
    other: float
    like: int


@dataclass(frozen=True)
class Merge:
    """Two identities that look like one person: similarity of the centres of their cores, and their most similar pictures."""

    label_a: int
    label_b: int
    similarity: float
    row_a: int
    row_b: int


@dataclass(frozen=True)
class Statistics:
    """What a round went by. Mean and deviation of similarities of one person's pictures and of strangers'; `link`: where both
    are equally likely; `home` and `merge`: what looking like another identity takes, of 1, 2, or 3 pictures and more."""

    same: tuple[float, float]
    strangers: tuple[float, float]
    wrong_share: float
    link: float
    home: tuple[float, ...]
    merge: tuple[float, ...]
    head: bool


@dataclass(frozen=True)
class Round:
    """What one round proposes."""

    statistics: Statistics
    findings: tuple[Finding, ...]
    merges: tuple[Merge, ...]


def curate(vectors: Vectors, labels: Ints, seed: int = 0) -> list[Round]:
    """Look for wrong labels, round by round, until a round proposes what the one before it did.

    `vectors` (N, D) of unit length, `labels` (N,) 0..L-1, each of which some picture has.
    """
    rounds: list[Round] = []
    clean, families = np.ones(len(labels), bool), np.arange(labels.max() + 1)
    for number in range(1, ROUNDS + 1):
        space = vectors if number == 1 else better_space(vectors, families[labels], clean, seed)
        random = np.random.default_rng(seed)
        found = _Look(space, labels, families, clean, random, head=space is not vectors, first=number == 1).round()
        rounds.append(found)
        if settled(rounds):
            break
        clean = np.ones(len(labels), bool)
        clean[[f.row for f in found.findings]] = False
        families = united(found.merges, len(families))
    return rounds


def settled(rounds: Sequence[Round]) -> bool:
    """Whether the last round proposes what the one before it did."""
    return len(rounds) > 1 and _said(rounds[-1]) == _said(rounds[-2])


def united(merges: Sequence[Merge], labels: int) -> Ints:
    """The label that each one (L,) becomes when all merges are carried out: the smallest of those united."""
    into = np.arange(labels)

    def root(label: int) -> int:
        while into[label] != label:
            label = int(into[label])
        return label

    for merge in merges:
        a, b = sorted((root(merge.label_a), root(merge.label_b)))
        into[b] = a
    return np.array([root(label) for label in range(labels)], np.int64)


def duplicates(
    vectors: Vectors, hashes: Sequence[int], most_bits: int, least: float
) -> list[tuple[int, int, int, float]]:
    """Pairs of pictures that are copies: perceptual hashes differ in few of 64 bits, and faces are very similar.

    Returns (a, b, bits apart, similarity), most alike first.
    """
    found = []
    for start in range(0, len(vectors), CHUNK):
        similar = vectors[start : start + CHUNK] @ vectors.T
        a, b = np.nonzero(similar >= least)
        later = b > a + start
        for i, j in zip((a + start)[later].tolist(), b[later].tolist(), strict=True):
            bits = (hashes[i] ^ hashes[j]).bit_count()
            if bits <= most_bits:
                found.append((i, j, bits, float(similar[i - start, j])))
    return sorted(found, key=lambda pair: (pair[2], -pair[3]))


def _said(found: Round) -> tuple[object, ...]:
    return (
        sorted((f.row, f.verdict, f.other_label if f.verdict is Verdict.ELSEWHERE else -1) for f in found.findings),
        sorted((m.label_a, m.label_b) for m in found.merges),
    )


class _Look:
    """One round's look at all pictures. `families`: what labels became when those believed to be one person were united."""

    def __init__(
        self,
        space: Vectors,
        labels: Ints,
        families: Ints,
        clean: Bools,
        random: np.random.Generator,
        head: bool,
        first: bool,
    ) -> None:
        self.space, self.labels, self.families = space, labels, families
        self.clean, self.random, self.head, self.first = clean, random, head, first
        order = np.argsort(labels, kind="stable")
        self.members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)

    def round(self) -> Round:
        same, strangers, wrong = self._similarities()
        link = _equally_likely(same, strangers)
        cores = [self._core(rows, link) for rows in self.members]
        centres = _Centres.of(self.space, cores)
        in_core = np.zeros(len(self.labels), bool)
        in_core[np.concatenate(cores)] = True
        others = self._others(centres, self.space, self.labels)
        home = tuple(_extreme(others.best[in_core, m], HOME_FAR, link) for m in range(SIZES))
        between = self._others(centres, centres.vectors, np.arange(len(cores)))
        merge = tuple(_extreme(between.best[centres.sizes > m, m], MERGE_FAR, link) for m in range(SIZES))
        findings = [self._judge(row, cores, centres, others, home) for row in np.flatnonzero(~in_core).tolist()]
        return Round(
            Statistics(same, strangers, wrong, link, home, merge, self.head),
            tuple(self._settled(findings, cores, link)),
            tuple(self._merges(cores, centres, merge)),
        )

    def _similarities(self) -> tuple[tuple[float, float], tuple[float, float], float]:
        """Mean and deviation of similarities within identities and across them, and the share of strangers within."""
        a, b = self.random.integers(0, len(self.labels), (2, STRANGERS))
        family = self.families[self.labels]
        apart = family[a] != family[b]
        across = (self.space[a[apart]] * self.space[b[apart]]).sum(axis=1)
        inside = np.concatenate([self._some_pairs(rows[self.clean[rows]]) for rows in self.members])
        inside = inside if len(inside) else across
        strangers = float(across.mean()), float(across.std())
        # Half of all strangers lie below their median, and hardly anybody who is one person.
        wrong = min(2 * float((inside < np.median(across)).mean()), 0.9) if self.first else 0.0
        mean = (float(inside.mean()) - wrong * strangers[0]) / (1 - wrong)
        square = (float((inside**2).mean()) - wrong * float((across**2).mean())) / (1 - wrong)
        return (mean, max(square - mean**2, 1e-4) ** 0.5), strangers, wrong

    def _some_pairs(self, rows: Ints) -> Vectors:
        if len(rows) < 2:
            return np.zeros(0, np.float32)
        a, b = (
            np.triu_indices(len(rows), 1) if len(rows) < PAIRS else self.random.integers(0, len(rows), (2, 4 * PAIRS))
        )
        a, b = a[a != b], b[a != b]
        chosen = self.random.permutation(len(a))[:PAIRS]
        pairs: Vectors = (self.space[rows[a[chosen]]] * self.space[rows[b[chosen]]]).sum(axis=1)
        return pairs

    def _core(self, rows: Ints, link: float) -> Ints:
        """The largest group of some pictures; none if two are equally large."""
        if len(rows) < 2:
            return rows
        vectors = self.space[rows]
        distances = np.clip(1 - vectors @ vectors.T, 0, 2)
        np.fill_diagonal(distances, 0)
        groups = fcluster(linkage(squareform(distances, checks=False), "average"), 1 - link, "distance")
        sizes = np.bincount(groups)
        largest = np.flatnonzero(sizes == sizes.max())
        return rows[groups == largest[0]] if len(largest) == 1 else rows[:0]

    def _others(self, centres: "_Centres", vectors: Vectors, labels: Ints) -> "_Others":
        """For each vector, said to be of a label, the most similar identity outside of that label's family."""
        found = _Others(np.full((len(labels), SIZES), -np.inf), np.full((len(labels), SIZES), -1))
        for start in range(0, len(labels), CHUNK):
            rows = slice(start, start + CHUNK)
            similar = vectors[rows] @ centres.vectors.T
            similar[self.families[labels[rows], None] == self.families] = -np.inf
            for m in range(SIZES):
                of_size = np.flatnonzero(centres.sizes == m + 1)
                if len(of_size):
                    best = similar[:, of_size].argmax(axis=1)
                    found.best[rows, m] = np.take_along_axis(similar[:, of_size], best[:, None], 1)[:, 0]
                    found.label[rows, m] = np.where(np.isfinite(found.best[rows, m]), of_size[best], -1)
        return found

    def _judge(
        self, row: int, cores: Sequence[Ints], centres: "_Centres", others: "_Others", home: Sequence[float]
    ) -> Finding:
        label = int(self.labels[row])
        mates = cores[label] if len(cores[label]) else self.members[label][self.members[label] != row]
        own = float(self.space[row] @ _centre(self.space[mates]))
        at = int(np.argmax(others.best[row] - np.array(home)))
        other, similarity = int(others.label[row, at]), float(others.best[row, at])
        elsewhere = similarity >= home[at] and similarity > own
        verdict = Verdict.ELSEWHERE if elsewhere else Verdict.STRANGER if len(cores[label]) else Verdict.DOUBTFUL
        like = self._most_like(row, cores[other]) if other >= 0 else -1
        return Finding(row, verdict, own, self._most_like(row, mates), other, similarity, like)

    def _most_like(self, row: int, among: Ints) -> int:
        return int(among[int((self.space[among] @ self.space[row]).argmax())])

    def _settled(self, findings: Sequence[Finding], cores: Sequence[Ints], link: float) -> Iterator[Finding]:
        """Where pictures contradicted each other, those that have no home elsewhere may be a majority after all."""
        doubtful: dict[int, list[Finding]] = {}
        for finding in findings:
            if finding.verdict is Verdict.DOUBTFUL:
                doubtful.setdefault(int(self.labels[finding.row]), []).append(finding)
            else:
                yield finding
        for label, among in doubtful.items():
            left = np.array([finding.row for finding in among], np.int64)
            core = self._core(left, link) if len(left) < len(self.members[label]) else left[:0]
            for finding in among:
                if finding.row not in core:
                    yield replace(finding, verdict=Verdict.STRANGER) if len(core) else finding

    def _merges(self, cores: Sequence[Ints], centres: "_Centres", least: Sequence[float]) -> Iterator[Merge]:
        """Identities whose centres are more alike than a stranger's would be, by how many pictures the smaller one has."""
        enough = np.array([np.inf, *least])
        for start in range(0, len(cores), CHUNK):
            rows = slice(start, start + CHUNK)
            smaller = np.minimum(centres.sizes[rows, None], centres.sizes)
            similar = centres.vectors[rows] @ centres.vectors.T
            for a, b in zip(*np.nonzero(similar >= enough[smaller]), strict=True):
                if a + start < b:
                    yield self._merge(cores[a + start], cores[b], float(similar[a, b]))

    def _merge(self, a: Ints, b: Ints, similarity: float) -> Merge:
        i, j = divmod(int((self.space[a] @ self.space[b].T).argmax()), len(b))
        return Merge(int(self.labels[a[i]]), int(self.labels[b[j]]), similarity, int(a[i]), int(b[j]))


@dataclass(frozen=True)
class _Centres:
    """The mean direction (L, D) of each core, zero where there is none, and of how many pictures it is: 3 stands for more."""

    vectors: Vectors
    sizes: Ints

    @classmethod
    def of(cls, space: Vectors, cores: Sequence[Ints]) -> "_Centres":
        vectors = np.zeros((len(cores), space.shape[1]), np.float32)
        for label, rows in enumerate(cores):
            if len(rows):
                vectors[label] = _centre(space[rows])
        return cls(vectors, np.array([min(len(rows), SIZES) for rows in cores], np.int64))


@dataclass(frozen=True)
class _Others:
    """The best similarity (N, 3) to another identity of 1, 2, or 3 and more pictures, and whose it is."""

    best: NDArray[np.float64]
    label: Ints


def _centre(vectors: Vectors) -> Vectors:
    mean = vectors.mean(axis=0)
    centre: Vectors = mean / max(float(np.linalg.norm(mean)), 1e-9)
    return centre


def _equally_likely(same: tuple[float, float], strangers: tuple[float, float]) -> float:
    """The similarity between both means at which two normal distributions are equally dense."""
    grid = np.linspace(strangers[0], same[0], 2001)
    dense = [-(((grid - mean) / deviation) ** 2) / 2 - np.log(deviation) for mean, deviation in (same, strangers)]
    return float(grid[int(np.argmin(np.abs(dense[0] - dense[1])))])


def _extreme(null: NDArray[np.float64], share: float, least: float) -> float:
    """What the most similar stranger exceeds in a share of cases: by the normal distribution through two quantiles of them.

    Not by their upper end, which holds those who do have a second identity. On LFW as it is, the 99th and 99.9th percentile so
    estimated are those that are found, within 0.007. Never under `least`; beyond reach where there are too few to tell.
    """
    null = null[np.isfinite(null)]
    if len(null) < LEAST_NULL:
        return float("inf")
    low, high = np.quantile(null, BODY)
    at_low, at_high, wanted = norm.ppf([*BODY, 1 - share])
    return max(float(low + (wanted - at_low) * (high - low) / (at_high - at_low)), least)
