"""The bridge between two embedding versions: what it recovers, and that its loss is told as it is."""

import numpy as np
import pytest

from tasks.versioning import bridge
from tasks.versioning.bridge import LEAST_FACES, Vectors

PEOPLE, EACH = 40, 6


def unit(vectors: np.ndarray) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def two_versions(noise: float, seed: int = 0) -> tuple[Vectors, Vectors, np.ndarray]:
    """Faces as two models see them, in random order: one is a linear view of the other, but for `noise`; and who they are."""
    random = np.random.default_rng(seed)
    who = random.permutation(np.repeat(np.arange(PEOPLE), EACH))
    faces = unit(random.normal(size=(PEOPLE, 16)))[who] + 0.15 * random.normal(size=(len(who), 16))
    target = unit(faces @ random.normal(size=(16, 24)) + noise * random.normal(size=(len(who), 24)))
    return unit(faces), target, who


def test_a_version_that_is_a_linear_view_of_the_other_is_recovered() -> None:
    former, target, people = two_versions(noise=0.0)
    found = bridge.fit(former, target, people)
    assert found is not None
    assert found.measures.cosine > 0.99
    assert found.measures.agreement > 0.9
    assert found.measures.tar_loss is not None
    assert abs(found.measures.tar_loss) < 0.05
    assert np.allclose(np.linalg.norm(found(former), axis=1), 1, atol=1e-5)


def test_versions_that_have_nothing_in_common_are_told_to_lose_everything() -> None:
    former, target, people = two_versions(noise=0.0)
    shuffled = target[np.random.default_rng(1).permutation(len(target))]
    found = bridge.fit(former, shuffled, people)
    assert found is not None
    assert found.measures.cosine < 0.5
    assert found.measures.agreement < 0.2


def test_loss_is_measured_on_faces_that_the_map_was_not_fitted_to() -> None:
    """With fewer faces than numbers a map fits its own faces perfectly; the held-back ones tell the truth."""
    random = np.random.default_rng(2)
    former, target = unit(random.normal(size=(LEAST_FACES, 128))), unit(random.normal(size=(LEAST_FACES, 64)))
    found = bridge.fit(former, target, np.full(LEAST_FACES, -1))
    assert found is not None
    assert found.measures.held_back == LEAST_FACES // 4
    assert found.measures.cosine < 0.4
    assert found.measures.tar_native is None


@pytest.mark.parametrize("count", [0, LEAST_FACES - 1])
def test_too_few_faces_build_no_bridge(count: int) -> None:
    former, target, people = two_versions(noise=0.1)
    assert bridge.fit(former[:count], target[:count], people[:count]) is None
    assert "not built yet" in bridge.describe(None)
