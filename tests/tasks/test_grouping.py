"""Grouping: people stay whole, strangers stay apart, decisions hold, and the order of arrival does not matter."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.evaluation.calibration import fit
from tasks.identities.agglomeration import Groups
from tasks.identities.grouping import (
    NOBODY,
    Exemplars,
    Faces,
    Grouping,
    Policy,
    bcubed,
    exact_neighbours,
    group,
    nearest_people,
)

Ints = NDArray[np.int64]
D = 128
POLICY = Policy(join=0.6, propose=0.45)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def faces(embeddings: NDArray[np.floating], first: int = 0, quality: float = 1.0, photos: Ints | None = None) -> Faces:
    n = len(embeddings)
    ids = np.arange(first, first + n)
    return Faces(ids, unit(embeddings), np.full(n, quality, np.float32), ids if photos is None else photos)


def people(count: int, each: int, seed: int = 0, spread: float = 0.55) -> tuple[Faces, Ints]:
    """Random people, `each` times seen: similarity about 1 / (1 + spread^2) = 0.77 of one, 0.0 +- 0.09 of two people."""
    random = np.random.default_rng(seed)
    centres = np.repeat(unit(random.normal(size=(count, D))), each, axis=0)
    return faces(centres + random.normal(scale=spread / np.sqrt(D), size=centres.shape)), np.repeat(
        np.arange(count), each
    )


def nobody() -> Exemplars:
    return Exemplars(faces(np.empty((0, D))), np.empty(0, dtype=np.int64))


@dataclass
class Catalogue:
    """What a catalog does between two nights: keep identities and exemplars, carry out merges."""

    policy: Policy = POLICY
    identities: dict[int, int] = field(default_factory=dict)
    exemplars: Exemplars = field(default_factory=nobody)
    photos: dict[int, list[int]] = field(default_factory=dict)
    next_identity: int = 0

    def night(self, new: Faces) -> Grouping:
        result = group(
            new, self.exemplars, self.policy, next_identity=self.next_identity, seen_together=self.seen_together
        )
        for face, photo in zip(new.ids.tolist(), new.photos.tolist(), strict=True):
            self.photos.setdefault(photo, []).append(face)
        self.next_identity += len(result.founded)
        kept = {merge.absorbed: merge.kept for merge in result.merges}
        self.identities = {face: kept.get(person, person) for face, person in self.identities.items()}
        self.identities |= dict(zip(new.ids.tolist(), result.identities.tolist(), strict=True))
        replaced = [*kept, *result.exemplars.identities.tolist()]
        stay = self.exemplars.take(np.flatnonzero(~np.isin(self.exemplars.identities, replaced)))
        self.exemplars = Exemplars(
            stay.faces.followed_by(result.exemplars.faces),
            np.concatenate([stay.identities, result.exemplars.identities]),
        )
        return result

    def seen_together(self, identities: Ints) -> Ints:
        """Pairs of identities with faces in one photo."""
        pairs = {
            (a, b)
            for named in self.photos.values()
            for a in map(self.identities.get, named)
            for b in map(self.identities.get, named)
            if a in identities and b in identities and a != b
        }
        return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)

    def of(self, new: Faces) -> Ints:
        return np.array([self.identities[face] for face in new.ids.tolist()])


def same_partition(a: Ints, b: Ints) -> bool:
    return bool(np.array_equal(a[:, None] == a, b[:, None] == b))


@pytest.mark.parametrize("nights", [1, 5, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_clear_people_are_found_whatever_the_order_of_arrival(nights: int, seed: int) -> None:
    everyone, truth = people(count=30, each=6)
    catalogue = Catalogue()
    order = np.random.default_rng(seed).permutation(len(everyone))
    for part in np.array_split(order, nights):
        catalogue.night(everyone.take(part))
    assert same_partition(catalogue.of(everyone), truth)


def test_a_person_photographed_more_often_than_neighbours_are_looked_at_stays_one() -> None:
    everyone, truth = people(count=3, each=300)
    result = group(everyone, nobody(), POLICY, next_identity=0)
    assert same_partition(result.identities, truth)
    assert len(result.exemplars) == 3 * POLICY.exemplars


def test_order_of_the_input_does_not_matter() -> None:
    everyone, _ = people(count=20, each=5, spread=0.8)
    known, _ = people(count=10, each=3, seed=0, spread=0.8)
    exemplars = Exemplars(faces(known.embeddings, first=1000), np.repeat(np.arange(10), 3))
    expected = group(everyone, exemplars, POLICY, next_identity=10)
    for seed in range(3):
        random = np.random.default_rng(seed)
        new, old = random.permutation(len(everyone)), random.permutation(len(exemplars))
        result = group(everyone.take(new), exemplars.take(old), POLICY, next_identity=10)
        assert np.array_equal(result.identities, expected.identities[new])
        assert (result.merges, result.proposals) == (expected.merges, expected.proposals)
        assert np.array_equal(result.exemplars.faces.ids, expected.exemplars.faces.ids)


def test_one_look_alike_does_not_chain_two_people_together() -> None:
    a, b = np.eye(D)[0], np.eye(D)[1]
    between = a + b  # similarity 0.71 to both, which are at 0
    random = np.random.default_rng(0)
    vectors = np.stack([a] * 5 + [b] * 5 + [between]) + random.normal(scale=0.02, size=(11, D))
    identities = group(faces(vectors), nobody(), POLICY, next_identity=0).identities
    assert same_partition(identities[:10], np.repeat([0, 1], 5))


def test_near_twins_in_one_photo_never_merge() -> None:
    random = np.random.default_rng(0)
    twin = unit(random.normal(size=D))
    catalogue = Catalogue()
    for night in range(6):
        vectors = twin + random.normal(scale=0.01, size=(4, D))  # two photos with both twins, alike to 0.99
        catalogue.night(faces(vectors, first=4 * night, photos=100 * night + np.array([0, 0, 1, 1])))
        for photo in range(2):
            first, second = (catalogue.identities[4 * night + 2 * photo + i] for i in range(2))
            assert first != second


def test_twins_seen_together_in_a_photo_that_no_exemplar_shows_stay_apart() -> None:
    twins = unit(np.ones((2, D)) + np.eye(D)[:2] * 0.1)
    known = Exemplars(faces(np.concatenate([twins, np.eye(D)[5:6]])), np.array([3, 7, 5]))
    new = faces(twins[:1], first=10)
    assert group(new, known, POLICY, next_identity=8).merges  # without a word they are one
    asked: list[list[int]] = []

    def seen_together(identities: Ints) -> Ints:
        asked.append(identities.tolist())
        return np.array([[7, 3]])

    result = group(new, known, POLICY, next_identity=8, seen_together=seen_together)
    assert asked == [[3, 7]]  # once, and not about the stranger
    assert not result.merges
    assert not result.proposals
    assert result.identities[0] in (3, 7)


def test_answer_about_other_identities_is_refused() -> None:
    known = Exemplars(faces(np.eye(D)[:2]), np.array([3, 7]))
    with pytest.raises(ValueError, match="not asked about"):
        group(faces(np.eye(D)[:1], 10), known, POLICY, next_identity=8, seen_together=lambda _: np.array([[3, 7]]))


def test_rejected_merge_is_neither_made_nor_proposed_again() -> None:
    twins = unit(np.ones((2, D)) + np.eye(D)[:2] * 0.1)
    known = Exemplars(faces(twins), np.array([0, 1]))
    result = group(faces(twins[:1], first=10), known, POLICY, next_identity=2, cannot_link=np.array([[0, 1]]))
    assert not result.merges
    assert not result.proposals


def test_new_face_joins_the_person_it_resembles_and_keeps_that_id() -> None:
    everyone, truth = people(count=10, each=5)
    first = np.arange(len(everyone)) % 5 < 4
    catalogue = Catalogue()
    catalogue.night(everyone.take(np.flatnonzero(first)))
    result = catalogue.night(everyone.take(np.flatnonzero(~first)))
    assert result.founded.size == 0
    assert np.array_equal(result.identities, truth[~first])
    assert np.array_equal(np.unique(result.exemplars.identities), np.arange(10))


def test_people_without_a_similar_new_face_are_left_alone() -> None:
    everyone, truth = people(count=20, each=4)
    old, new = np.flatnonzero(truth < 15), np.flatnonzero(truth >= 15)
    exemplars = Exemplars(everyone.take(old), truth[old])
    result = group(everyone.take(new), exemplars, POLICY, next_identity=15)
    assert np.array_equal(result.founded, np.arange(15, 20))
    assert set(result.exemplars.identities) == set(range(15, 20))


def test_leaving_out_people_that_are_not_similar_changes_nothing() -> None:
    everyone, truth = people(count=20, each=4)
    new = np.arange(len(everyone)) % 4 == 0
    known = Exemplars(everyone.take(np.flatnonzero(~new)), truth[~new])
    few = np.flatnonzero(new & (truth < 3))
    near = known.take(np.flatnonzero(known.identities < 3))
    whole = group(everyone.take(few), known, POLICY, next_identity=20)
    part = group(everyone.take(few), near, POLICY, next_identity=20)
    assert np.array_equal(whole.identities, part.identities)
    assert np.array_equal(whole.exemplars.faces.ids, part.exemplars.faces.ids)


def test_the_nearest_people_are_few_whoever_else_is_alike_and_each_by_the_nearest_comparison() -> None:
    faces = np.array([7, 7, 7, 7, 7, 9, 7])
    people = np.array([1, 2, 1, NOBODY, 3, 3, 4])
    similarities = np.array([0.5, 0.8, 0.9, 1.0, 0.7, 0.6, 0.7], np.float32)
    assert nearest_people(faces, people, similarities, 3).tolist() == [2, 1, 4, 5]
    assert nearest_people(faces, people, similarities, 2).tolist() == [2, 1, 5]
    assert nearest_people(faces, people, similarities, 2, slack=0.11).tolist() == [2, 1, 4, 6, 5]
    assert nearest_people(faces[:0], people[:0], similarities[:0], 3, slack=0.1).tolist() == []


def test_known_people_that_new_faces_show_to_be_one_are_merged_into_the_older_with_evidence() -> None:
    random = np.random.default_rng(0)
    centre, away = unit(random.normal(size=(2, D)))
    left, right = unit(centre + 0.75 * away), unit(centre - 0.75 * away)  # similarity 0.28: one person in two looks
    known = Exemplars(faces(np.stack([left, right])), np.array([3, 7]))
    new = faces(centre + random.normal(scale=0.01, size=(6, D)), first=10)
    result = group(new, known, POLICY, next_identity=8)
    assert set(result.identities) == {3}
    (merge,) = result.merges
    assert (merge.kept, merge.absorbed) == (3, 7)
    assert merge.closeness >= POLICY.join
    assert len(merge.evidence) == 3
    for mine, yours, similarity in merge.evidence:
        assert yours == 1  # the only face of the absorbed one
        assert similarity == pytest.approx(1 / np.sqrt(1 + 0.75**2), abs=0.05) or mine == 0
    assert set(result.exemplars.identities) == {3}


def test_settled_people_are_proposed_but_never_merged() -> None:
    twins = unit(np.ones((2, D)) + np.eye(D)[:2] * 0.1)
    known = Exemplars(faces(twins), np.array([4, 9]))
    result = group(faces(twins[:1], first=10), known, POLICY, next_identity=10, settled=np.array([4, 9]))
    assert not result.merges
    assert [(merge.kept, merge.absorbed) for merge in result.proposals] == [(4, 9)]


def test_settled_person_is_kept_when_a_machine_made_one_is_older() -> None:
    twins = unit(np.ones((2, D)) + np.eye(D)[:2] * 0.1)
    known = Exemplars(faces(twins), np.array([4, 9]))
    result = group(faces(twins[:1], first=10), known, POLICY, next_identity=10, settled=np.array([9]))
    assert [(merge.kept, merge.absorbed) for merge in result.merges] == [(9, 4)]
    assert result.identities.tolist() == [9]


def test_chained_merges_all_name_the_identity_that_is_left() -> None:
    vectors = unit(np.ones((4, D)) + np.eye(D)[:4] * 0.1)
    known = Exemplars(faces(vectors), np.array([8, 6, 5, 3]))
    result = group(faces(vectors, first=10), known, POLICY, next_identity=9)
    assert sorted((merge.kept, merge.absorbed) for merge in result.merges) == [(3, 5), (3, 6), (3, 8)]


def test_similar_but_not_close_people_are_proposed() -> None:
    a = np.eye(D)[0]
    b = 0.5 * a + np.sqrt(0.75) * np.eye(D)[1]
    result = group(faces(np.stack([a, b])), nobody(), POLICY, next_identity=0)
    assert result.identities.tolist() == [0, 1]
    (proposal,) = result.proposals
    assert (proposal.kept, proposal.absorbed, proposal.closeness) == (0, 1, pytest.approx(0.5, abs=1e-6))
    assert proposal.evidence == ((0, 1, pytest.approx(0.5, abs=1e-6)),)


def test_poor_faces_join_but_never_found_and_never_stand_for_anyone() -> None:
    everyone, truth = people(count=5, each=4)
    poor = (np.arange(len(everyone)) % 4 == 0) | (truth == 4)  # one of each, and all of the last person
    quality = np.where(poor, 0.1, 0.9).astype(np.float32)
    result = group(
        Faces(everyone.ids, everyone.embeddings, quality, everyone.photos), nobody(), POLICY, next_identity=0
    )
    assert same_partition(result.identities[truth < 4], truth[truth < 4])
    assert set(result.identities[truth == 4]) == {NOBODY}
    assert not np.isin(result.exemplars.faces.ids, everyone.ids[poor]).any()


def test_poor_faces_do_not_pull_a_person_away() -> None:
    a, b = np.eye(D)[:2]
    halfway = unit(np.stack([a + 0.9 * b] * 20))
    known = Exemplars(faces(a[None]), np.array([0]))
    result = group(faces(halfway, first=10, quality=0.1), known, POLICY, next_identity=1)
    assert set(result.identities) == {0}
    assert result.exemplars.faces.ids.tolist() == [0]


def test_poor_face_between_two_people_does_not_make_them_one() -> None:
    a, b = np.eye(D)[:2]
    known = Exemplars(faces(np.stack([a, b])), np.array([0, 1]))
    result = group(faces((a + 0.9 * b)[None], first=10, quality=0.1), known, POLICY, next_identity=2)
    assert result.identities.tolist() == [0]
    assert not result.merges


def test_two_poor_faces_of_one_photo_do_not_join_the_same_person() -> None:
    a, b = np.eye(D)[:2]
    known = Exemplars(faces(a[None]), np.array([0]))
    new = faces(np.stack([a + 0.5 * b, a + 0.4 * b]), first=10, quality=0.1, photos=np.array([50, 50]))
    assert group(new, known, POLICY, next_identity=1).identities.tolist() == [NOBODY, 0]


def test_a_person_is_represented_by_the_best_faces_whenever_they_came() -> None:
    random = np.random.default_rng(0)
    vectors = unit(np.eye(D)[0] + random.normal(scale=0.02, size=(60, D)))
    quality = random.permutation(np.linspace(0.4, 1, 60)).astype(np.float32)
    one = Faces(np.arange(60), vectors, quality, np.arange(60))
    catalogue = Catalogue()
    for part in np.array_split(random.permutation(60), 7):
        catalogue.night(one.take(part))
    assert set(catalogue.exemplars.faces.ids) == set(np.argsort(-quality)[: POLICY.exemplars])


def test_rejected_face_does_not_return_to_the_person_by_another_way() -> None:
    random = np.random.default_rng(0)
    vectors = unit(np.eye(D)[0] + random.normal(scale=0.02, size=(6, D)))
    known = Exemplars(faces(vectors[:3]), np.array([0, 0, 0]))
    new = faces(vectors[3:], first=10)
    result = group(new, known, POLICY, next_identity=1, cannot_link=np.array([[10, 1]]))
    assert result.identities[0] == 1  # its own
    assert set(result.identities[1:]) <= {0, 1}
    assert not result.merges


def test_two_faces_that_stand_for_one_identity_cannot_be_kept_apart() -> None:
    known = Exemplars(faces(unit(np.ones((2, D)) + np.eye(D)[:2] * 0.1)), np.array([3, 3]))
    new = faces(known.faces.embeddings[:1], first=10)
    with pytest.raises(ValueError, match="faces 0 and 1 must not be one person"):
        group(new, known, POLICY, next_identity=4, cannot_link=np.array([[0, 1]]))


def test_identical_vectors_are_grouped_the_same_every_time() -> None:
    vectors = np.repeat(np.eye(D)[:2], 4, axis=0)
    new = faces(vectors, photos=np.array([1, 1, 2, 3, 4, 4, 5, 6]))
    results = [group(new, nobody(), POLICY, next_identity=0).identities.tolist() for _ in range(3)]
    assert results == [[0, 1, 0, 0, 2, 3, 2, 2]] * 3  # the twin with the smaller id takes the others


def test_no_new_faces_change_nothing() -> None:
    known, truth = people(count=3, each=2)
    for exemplars in (nobody(), Exemplars(known, truth)):
        result = group(faces(np.empty((0, D))), exemplars, POLICY, next_identity=3)
        assert (len(result.identities), len(result.founded), len(result.exemplars)) == (0, 0, 0)
        assert not result.merges
        assert not result.proposals


def test_another_search_may_return_fewer_rows_and_any_order() -> None:
    everyone, truth = people(count=10, each=4)
    new = np.arange(len(everyone)) % 4 == 0
    known = Exemplars(everyone.take(np.flatnonzero(~new)), truth[~new])
    exact = exact_neighbours(known.faces.embeddings)

    def search(queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], Ints]:
        similarities, rows = (array[:, ::-1] for array in exact(queries, 5))
        nothing = np.full((len(queries), k - 5), -1)
        return np.hstack([similarities, -nothing.astype(np.float32)]), np.hstack([rows, nothing])

    fresh = everyone.take(np.flatnonzero(new))
    expected = group(fresh, known, POLICY, next_identity=10).identities
    assert np.array_equal(group(fresh, known, POLICY, next_identity=10, neighbours=search).identities, expected)


def test_exact_search_finds_the_nearest() -> None:
    random = np.random.default_rng(0)
    vectors, queries = unit(random.normal(size=(100, D))), unit(random.normal(size=(33, D)))
    similarities, rows = exact_neighbours(vectors)(queries, 4)
    assert np.allclose(np.sort(similarities)[:, ::-1], -np.sort(-queries @ vectors.T)[:, :4], atol=1e-6)
    assert np.allclose(np.take_along_axis(queries @ vectors.T, rows, axis=1), similarities, atol=1e-6)
    assert exact_neighbours(vectors[:2])(queries, 4)[1].shape == (33, 2)


def test_closeness_is_the_geometric_mean_of_average_linkage_and_cosine_of_means() -> None:
    random = np.random.default_rng(0)
    left, right = unit(1 + random.normal(size=(4, D))), unit(1 + random.normal(size=(3, D)))
    known = Exemplars(faces(left).followed_by(faces(right, first=4)), np.array([0] * 4 + [1] * 3))
    groups = Groups(faces(np.empty((0, D))), known, POLICY, frozenset())
    average = (left.astype(np.float64) @ right.T).mean()
    cosine = unit(left.mean(axis=0)) @ unit(right.mean(axis=0))
    assert groups.closeness(0, np.array([1])) == pytest.approx(np.sqrt(average * cosine), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.3, 1.2))
def test_promises_hold_on_any_crowd(seed: int, nights: int, spread: float) -> None:
    everyone, _ = people(count=6, each=5, seed=seed, spread=spread)
    random = np.random.default_rng(seed)
    crowd = Faces(everyone.ids, everyone.embeddings, random.random(30, dtype=np.float32), random.integers(0, 12, 30))
    catalogue, seen = Catalogue(), np.zeros(30, dtype=bool)
    whole_photos = np.argsort(random.permutation(12)[crowd.photos], kind="stable")
    ends = np.flatnonzero(np.diff(crowd.photos[whole_photos])) + 1
    for part in np.split(whole_photos, np.sort(random.choice(ends, min(nights, len(ends)), replace=False))):
        result = catalogue.night(crowd.take(part))
        seen[part] = True
        assert set(result.identities[crowd.quality[part] >= POLICY.founding]).isdisjoint({NOBODY})
        identities = catalogue.of(crowd.take(np.flatnonzero(seen)))
        owners = dict(zip(crowd.ids[seen].tolist(), identities.tolist(), strict=True))
        exemplars = catalogue.exemplars
        assert [owners[face] for face in exemplars.faces.ids.tolist()] == exemplars.identities.tolist()
        assert (exemplars.faces.quality >= POLICY.founding).all()
        assert set(identities) - {NOBODY} == set(exemplars.identities)  # everyone has someone to stand for them
    named = catalogue.of(crowd)
    for photo in np.unique(crowd.photos):
        together = named[(crowd.photos == photo) & (named != NOBODY)]
        assert len(np.unique(together)) == len(together)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: Faces(f.ids, f.embeddings * 2, f.quality, f.photos), "face 0 has length 2"),
        (lambda f: Faces(f.ids, f.embeddings * 0, f.quality, f.photos), "face 0 has length 0"),
        (lambda f: Faces(f.ids, f.embeddings * np.float32(np.nan), f.quality, f.photos), "face 0 has length nan"),
        (lambda f: Faces(f.ids * 0, f.embeddings, f.quality, f.photos), "appears twice"),
        (lambda f: Faces(f.ids, f.embeddings, f.quality + 1, f.photos), "quality of face 0 is 2"),
        (lambda f: Faces(f.ids, f.embeddings, f.quality * np.float32(np.nan), f.photos), "quality of face 0 is nan"),
        (lambda f: Faces(f.ids, f.embeddings, f.quality, f.photos[1:]), "lengths"),
        (lambda f: Faces(f.ids, f.embeddings[:, :64], f.quality, f.photos), "one dimension"),
        (lambda f: Faces(f.ids + 100, f.embeddings, f.quality, f.photos), "appears twice"),
    ],
)
def test_nonsense_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    known = Exemplars(faces(np.eye(D)[:3], first=100), np.arange(3))
    with pytest.raises(ValueError, match=message):
        group(change(faces(np.eye(D)[:3])), known, POLICY, next_identity=3)


def test_identity_number_in_use_is_refused() -> None:
    known = Exemplars(faces(np.eye(D)[:3], first=100), np.arange(3))
    with pytest.raises(ValueError, match="identity 2 exists"):
        group(faces(np.eye(D)[:3]), known, POLICY, next_identity=2)


def test_policy_follows_the_calibration() -> None:
    random = np.random.default_rng(0)
    similarities = np.concatenate([random.normal(0.6, 0.1, 500), random.normal(0.1, 0.1, 500)])
    calibration = fit(similarities, np.arange(1000) < 500, contract="c", source="s")
    policy = Policy.of(calibration)
    assert calibration.thresholds.accuracy < policy.propose < policy.join < 0.6
    with pytest.raises(ValueError, match="propose <= join"):
        Policy(join=0.4, propose=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Policy(join=0.5, propose=0.4, exemplars=0)


def test_bcubed_of_a_worked_example() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 2])
    predicted = np.array([5, 5, 8, 8, 8, 9, NOBODY])
    result = bcubed(predicted, truth)
    assert result.precision == pytest.approx((1 + 1 + 2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 7)
    assert result.recall == pytest.approx((4 * 0.5 + 2 * 0.5 + 1) / 7)
    assert result.f == pytest.approx(2 * result.precision * result.recall / (result.precision + result.recall))


def test_bcubed_counts_nobody_as_alone_each() -> None:
    assert bcubed(np.array([NOBODY, NOBODY]), np.array([0, 1])).f == 1
    assert bcubed(np.array([NOBODY, NOBODY]), np.array([0, 0])).recall == 0.5


def test_bcubed_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="must match"):
        bcubed(np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="N > 0"):
        bcubed(np.array([], dtype=np.int64), np.array([], dtype=np.int64))
