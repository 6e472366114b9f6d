"""Margin losses against the official code, and what they promise."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models.losses import LOSSES
from models.losses.margin import (
    Constant,
    Elastic,
    MarginSoftmax,
    additive,
    angular,
    arcface,
    assigned_by_difficulty,
    cosface,
)
from tests.reference import shared

MARGIN_LOSSES = [name for name in LOSSES if "face" in name and name != "sface"]


def stored(family: str) -> dict[str, torch.Tensor]:
    with np.load(shared(f"reference/{family}/golden_loss.npz")) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def assert_loss(loss: MarginSoftmax, case: dict[str, torch.Tensor], name: str, weight_gradient: torch.Tensor) -> None:
    with torch.no_grad():
        loss.weight.copy_(case["class_weight"])
    embeddings = case["embeddings"].clone().requires_grad_()
    logits = loss.logits(embeddings, case["labels"])
    value = loss(embeddings, case["labels"])
    value.backward()
    torch.testing.assert_close(logits, case[f"{name}/logits"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(value, case[f"{name}/loss"], rtol=1e-5, atol=0)
    for gradient, wanted in ((embeddings.grad, case[f"{name}/grad_embeddings"]), (loss.weight.grad, weight_gradient)):
        assert (gradient - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        ("ArcFace", angular),
        ("CosFace", additive),
        ("ElasticArcFace", angular),
        ("ElasticArcFacePlus", angular),
        ("ElasticCosFace", additive),
        ("ElasticCosFacePlus", additive),
    ],
)
def test_value_and_gradients_are_those_of_elasticfaces_code(name, shift):
    case = stored("elasticface")
    margins = case.get(f"{name}/margin_applied", torch.full((8,), float(case[f"{name}/m"])))
    loss = MarginSoftmax(16, 10, shift, lambda cosines: margins)
    assert_loss(loss, case, name, case[f"{name}/grad_kernel"].T)


def test_value_and_gradients_of_cosface_are_those_of_petalfaces_code():
    case = stored("petalface")
    assert_loss(MarginSoftmax(16, 10, additive, Constant(0.4)), case, "CosFace", case["CosFace/grad_class_weight"])


@pytest.mark.parametrize("name", ["ElasticArcFacePlus", "ElasticCosFacePlus"])
def test_margins_are_dealt_out_as_in_elasticfaces_code(name):
    case = stored("elasticface")
    centres = F.normalize(case["class_weight"])[case["labels"]]
    cosines = (F.normalize(case["embeddings"]) * centres).sum(dim=1)
    dealt = assigned_by_difficulty(case[f"{name}/margin_drawn"], cosines)
    torch.testing.assert_close(dealt, case[f"{name}/margin_applied"])


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("elastic-arcface", 0.5, 0.05),
        ("elastic-arcface-plus", 0.5, 0.0175),
        ("elastic-cosface", 0.35, 0.05),
        ("elastic-cosface-plus", 0.35, 0.02),
    ],
)
def test_elastic_margins_are_drawn_around_the_papers_mean(name, mean, std):
    torch.manual_seed(0)
    margins = LOSSES[name](4, 3).margins(torch.rand(20_000))
    assert float(margins.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(20_000))
    assert float(margins.std()) == pytest.approx(std, rel=0.05)


def test_elastic_margins_differ_from_batch_to_batch_but_not_under_one_seed():
    cosines = torch.rand(8)
    draws = [Elastic(0.5, 0.05, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    first, same, other = (draw(cosines) for draw in draws)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, draws[0](cosines))


@pytest.mark.parametrize("loss", [arcface(16, 10, margin=0.0), cosface(16, 10, margin=0.0)], ids=["arcface", "cosface"])
def test_without_margin_it_is_softmax_over_scaled_cosines(loss):
    torch.manual_seed(1)
    embeddings, labels = torch.randn(6, 16), torch.randint(10, (6,))
    softmax = F.cross_entropy(64 * F.normalize(embeddings) @ F.normalize(loss.weight).T, labels)
    torch.testing.assert_close(loss(embeddings, labels), softmax)


@given(length=st.floats(0.01, 1000), seed=st.integers(0, 1000))
def test_length_of_an_embedding_does_not_matter(length, seed):
    torch.manual_seed(seed)
    loss, embeddings, labels = arcface(16, 10), torch.randn(6, 16), torch.randint(10, (6,))
    torch.testing.assert_close(loss(length * embeddings, labels), loss(embeddings, labels), rtol=1e-4, atol=1e-4)


@given(cosine=st.floats(-1, 1), margin=st.floats(0, 1))
def test_angular_margin_adds_to_the_angle(cosine, margin):
    cosines = torch.tensor([cosine], dtype=torch.float64)
    moved = angular(cosines, torch.tensor([margin], dtype=torch.float64))
    assert float(moved) == pytest.approx(math.cos(math.acos(cosine) + margin), abs=1e-7)


@given(seed=st.integers(0, 1000), low=st.floats(0, 0.6), more=st.floats(0.01, 0.3))
def test_larger_margin_is_harder(seed, low, more):
    torch.manual_seed(seed)
    state, embeddings, labels = torch.randn(10, 16), torch.randn(6, 16), torch.randint(10, (6,))
    values = []
    for margin in (low, low + more):
        loss = cosface(16, 10, margin)
        loss.load_state_dict({"weight": state})
        values.append(float(loss(embeddings, labels).detach()))
    assert values[1] > values[0]


@pytest.mark.parametrize("name", [*MARGIN_LOSSES, "sface"])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_gradients_are_finite_where_embedding_and_centre_are_parallel(name, side):
    torch.manual_seed(2)
    loss = LOSSES[name](16, 10)
    labels = torch.arange(10)
    embeddings = (side * loss.weight.detach()).requires_grad_()
    value = loss(embeddings, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(loss.weight.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_training_brings_each_person_together(name):
    torch.manual_seed(3)
    labels = torch.arange(4).repeat(6)
    embeddings = torch.randn(24, 8, requires_grad=True)
    loss = LOSSES[name](8, 4)
    optimizer = torch.optim.Adam([embeddings, *loss.parameters()], lr=0.05)

    def hits() -> float:
        similarity = F.normalize(embeddings.detach()) @ F.normalize(embeddings.detach()).T
        nearest = similarity.fill_diagonal_(-2).argmax(dim=1)
        return float((labels[nearest] == labels).float().mean())

    before = hits()
    for _ in range(150):
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()
    assert before < 0.7
    assert hits() == 1.0
