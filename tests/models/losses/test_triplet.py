"""Triplet mining and loss against the official code."""

import numpy as np
import pytest
import torch

from models.losses.triplet import (
    TripletLoss,
    drawn_triplets,
    negative_candidates,
    positive_pairs,
    squared_distances,
    triplet_loss,
    unit_length,
)
from tests.reference import shared

RULES = [("vgg", False), ("semihard", True)]


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    with np.load(shared("reference/facenet/golden_loss.npz")) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fib"}


def mined(case, semi_hard):
    pairs = positive_pairs(case["labels"])
    return pairs, negative_candidates(squared_distances(case["normalised"]), case["labels"], pairs, 0.2, semi_hard)


def test_embeddings_are_scaled_as_in_the_official_code(case):
    torch.testing.assert_close(unit_length(case["raw"]), case["normalised"])


@pytest.mark.parametrize(("rule", "semi_hard"), RULES)
def test_pairs_and_candidates_are_those_of_the_official_code(case, rule, semi_hard):
    pairs, candidates = mined(case, semi_hard)
    assert torch.equal(pairs, case[f"{rule}/pairs"])
    assert torch.equal(candidates, case[f"{rule}/candidates"])


@pytest.mark.parametrize(("rule", "semi_hard"), RULES)
@pytest.mark.parametrize("choice", ["seed0", "nearest"])
def test_loss_and_gradients_are_those_of_the_official_code(case, rule, semi_hard, choice):
    triplets = case[f"{rule}/{choice}_triplets"]
    pairs, candidates = mined(case, semi_hard)
    row = {tuple(pair): number for number, pair in enumerate(pairs.tolist())}
    assert all(candidates[row[anchor, positive], negative] for anchor, positive, negative in triplets.tolist())
    raw = case["raw"].clone().requires_grad_()
    unit = unit_length(raw)
    unit.retain_grad()
    loss = triplet_loss(unit, triplets, float(case["alpha"]))
    loss.backward()
    torch.testing.assert_close(loss, case[f"{rule}/{choice}_loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(unit.grad, case[f"{rule}/{choice}_grad_normalised"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(raw.grad, case[f"{rule}/{choice}_grad_raw"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rule", "semi_hard"), RULES)
def test_every_candidate_is_drawn_in_its_turn(case, rule, semi_hard):
    pairs, candidates = mined(case, semi_hard)
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros_like(candidates)
    row = {tuple(pair): number for number, pair in enumerate(pairs.tolist())}
    for _ in range(200):
        triplets = drawn_triplets(pairs, candidates, generator)
        assert len(triplets) == int(candidates.any(dim=1).sum()) == len(case[f"{rule}/seed0_triplets"])
        for anchor, positive, negative in triplets.tolist():
            seen[row[anchor, positive], negative] = True
    assert torch.equal(seen, candidates)


def test_semi_hard_negatives_give_a_loss_below_the_margin(case):
    for seed in range(20):
        loss = TripletLoss(generator=torch.Generator().manual_seed(seed))(case["raw"], case["labels"])
        assert 0 < float(loss) < 0.2


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0]], ids=["no pair", "no negative"])
def test_batch_without_a_triplet_costs_nothing_and_moves_nothing(labels):
    embeddings = torch.randn(4, 8, requires_grad=True)
    loss = TripletLoss()(embeddings, torch.tensor(labels))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(embeddings.grad, torch.zeros(4, 8))


def test_length_of_an_embedding_does_not_matter(case):
    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        return TripletLoss(generator=torch.Generator().manual_seed(0))(embeddings, case["labels"])

    lengths = torch.linspace(0.1, 50, 16)[:, None]
    torch.testing.assert_close(loss(lengths * case["raw"]), loss(case["raw"]))
