"""Hubness: what resembles everybody is told from what resembles somebody."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.identities.grouping import Exemplars, Faces, Policy, group, representatives
from tasks.identities.hubness import COHORT, FEWEST, STRANGERS, hubness

D = 128
Vectors = NDArray[np.float32]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def crowd(count: int, towards: NDArray[np.floating], pull: float, seed: int) -> Vectors:
    """So many random people, all leaning to one side."""
    return unit(np.random.default_rng(seed).normal(size=(count, D)) / np.sqrt(D) + pull * towards)


@pytest.fixture(scope="module")
def cohort() -> Vectors:
    """Return COHORT people, half of whom look like each other."""
    alike = crowd(COHORT // 2, np.eye(D)[0], 0.8, seed=1)
    return np.concatenate([alike, crowd(COHORT // 2, np.eye(D)[1], 0.0, seed=2)])


def test_who_looks_like_many_has_more_of_it_and_the_average_face_none(cohort: Vectors) -> None:
    common, rare = unit(np.eye(D)[0]), unit(np.eye(D)[5])
    values = hubness(np.stack([common, rare]), cohort, same=0.95)
    assert values[0] > 0.1 > -0.1 > values[1]
    assert hubness(cohort, cohort, same=0.95).mean() == pytest.approx(0, abs=1e-6)


def test_it_is_the_mean_similarity_to_the_nearest_strangers_beyond_the_cohorts_own(cohort: Vectors) -> None:
    faces = crowd(7, np.eye(D)[0], 0.3, seed=3)

    def nearness(vectors: Vectors) -> NDArray[np.float64]:
        products = vectors.astype(np.float64) @ cohort.T
        return np.sort(np.where(products >= 0.9, -1, products), axis=1)[:, -STRANGERS:].mean(axis=1)

    assert np.allclose(hubness(faces, cohort, 0.9), nearness(faces) - nearness(cohort).mean(), atol=1e-5)


def test_ones_own_person_in_the_cohort_is_no_stranger(cohort: Vectors) -> None:
    face = unit(np.eye(D)[5])
    known = np.concatenate([cohort[: COHORT - STRANGERS], np.repeat(face[None], STRANGERS, axis=0)])
    without = np.concatenate([cohort[: COHORT - STRANGERS], -np.repeat(face[None], STRANGERS, axis=0)])
    assert hubness(face[None], known, 0.9) == pytest.approx(hubness(face[None], without, 0.9), abs=1e-3)


def test_few_strangers_say_little_and_fewer_nothing(cohort: Vectors) -> None:
    face = unit(np.eye(D)[0])[None]
    shuffled = cohort[np.random.default_rng(0).permutation(COHORT)]
    whole, half = hubness(face, shuffled, 0.95)[0], hubness(face, shuffled[: COHORT // 2], 0.95)[0]
    assert 0.4 * whole < half < 0.6 * whole
    assert hubness(face, cohort[: FEWEST - 1], 0.95).tolist() == [0.0]
    assert hubness(face, cohort[:0], 0.95).tolist() == [0.0]


def test_as_alike_as_two_who_look_like_everybody_is_not_as_alike_as_two_who_look_like_nobody(cohort: Vectors) -> None:
    def pair(direction: int, seed: int) -> Vectors:
        """Two faces as alike as any other such pair."""
        away = np.random.default_rng(seed).normal(size=D)
        away -= away[direction] * np.eye(D)[direction]
        away *= 0.7 / np.linalg.norm(away)
        return unit(np.stack([np.eye(D)[direction] + away, np.eye(D)[direction]]))

    common, rare = pair(0, 6), pair(5, 7)
    assert common[0] @ common[1] == pytest.approx(rare[0] @ rare[1], abs=1e-6)
    vectors = np.concatenate([common, rare])
    faces = Faces(np.arange(4), vectors, np.ones(4, np.float32), np.arange(4))
    ids = np.arange(100, 100 + COHORT)
    known = Exemplars(Faces(ids, cohort, np.ones(COHORT, np.float32), ids), ids)
    join = float(common[0] @ common[1]) - 0.02
    nobody = known.take(ids[:0])
    placed = [
        group(faces, nobody, Policy(join=join, propose=join), next_identity=9_999, cohort=strangers).identities
        for strangers in (cohort, cohort[:0])
    ]
    assert placed[0][0] != placed[0][1]
    assert placed[0][2] == placed[0][3]
    assert placed[1][0] == placed[1][1]  # without strangers at hand both pairs are one person
    assert placed[1][2] == placed[1][3]


def test_the_cohort_is_one_face_each_of_those_known_longest(cohort: Vectors) -> None:
    random = np.random.default_rng(0)
    owners = np.repeat(np.arange(COHORT + 5), 2)
    vectors = unit(random.normal(size=(len(owners), D)))
    ids = random.permutation(len(owners))
    known = Exemplars(Faces(ids, vectors, np.ones(len(ids), np.float32), ids), owners)
    chosen = representatives(known.take(random.permutation(len(ids))))
    first = [vectors[owners == owner][ids[owners == owner].argmin()] for owner in range(COHORT)]
    assert np.array_equal(chosen, np.stack(first))
