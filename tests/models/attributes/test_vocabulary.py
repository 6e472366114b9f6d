"""The vocabulary: names and classes are stable, and labels map by name."""

import pytest
import torch

from models.spec import Kind
from models.vocabulary import (
    AGE,
    AGE_GROUP,
    ATTRIBUTES,
    CELEBA,
    EXPRESSION,
    GENDER,
    PARSING,
    RACE,
    category,
    mask,
    probability,
    second_opinion,
    without_confidence,
)


def test_gender_age_race_and_what_judges_looks_are_sensitive() -> None:
    assert all(attribute.sensitive for attribute in (AGE, AGE_GROUP, GENDER, RACE))
    for name in ("attractive", "chubby", "double_chin", "pale_skin", "big_nose", "narrow_eyes", "young", "bald"):
        assert ATTRIBUTES[name].sensitive, name
    for name in ("eyeglasses", "smiling", "wearing_hat", "black_hair", "expression", "yaw", "parsing"):
        assert not ATTRIBUTES[name].sensitive, name


def test_celeba_has_forty_attributes_of_which_male_is_called_gender() -> None:
    names = [attribute.name for attribute in CELEBA]
    assert len(names) == len(set(names)) == 40
    assert names[20] == "gender"
    assert {attribute.kind for attribute in CELEBA if attribute is not GENDER} == {Kind.PROBABILITY}


def test_category_moves_probabilities_to_the_class_of_the_same_name() -> None:
    estimate = category(EXPRESSION, torch.tensor([[0.1, 0.7, 0.2]]), ("neutral", "anger", "surprise"))
    assert estimate.probabilities is not None
    by_name = dict(zip(EXPRESSION.classes, estimate.probabilities[0].tolist(), strict=True))
    assert by_name == pytest.approx({
        "anger": 0.7, "disgust": 0, "fear": 0, "happiness": 0, "sadness": 0, "surprise": 0.2, "neutral": 0.1,
    })  # fmt: skip
    assert EXPRESSION.classes[int(estimate.value)] == "anger"
    assert estimate.confidence.item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [(("female", "man"), r"unknown \['man'\]"), (("female",), "1 labels for 2"), (("male", "male"), "one twice")],
)
def test_labels_that_do_not_fit_are_refused(labels: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        category(GENDER, torch.tensor([[0.5, 0.5]]), labels)


def test_mask_is_only_as_sure_as_its_foreground() -> None:
    logits = torch.full((2, 2, 1, 2), -20.0)
    logits[:, 0] = 20.0  # background, surely
    logits[0, :, 0, 1] = torch.tensor([0.0, torch.tensor(4.0).log()])  # one pixel of hair with probability 0.8
    estimate = mask(PARSING, logits, ("background", "hair"))
    assert [PARSING.classes[i] for i in estimate.value[0].flatten().tolist()] == ["background", "hair"]
    torch.testing.assert_close(estimate.confidence, torch.tensor([0.8, 0.0]))


def test_confidence_of_a_probability_is_that_of_the_likelier_answer() -> None:
    torch.testing.assert_close(probability(torch.tensor([0.1, 0.5, 0.8])).confidence, torch.tensor([0.9, 0.5, 0.8]))
    torch.testing.assert_close(probability(torch.tensor([[0.1, 0.7]])).confidence, torch.tensor([0.8]))


def test_a_model_that_gives_no_confidence_says_so() -> None:
    assert without_confidence(torch.zeros(3, 68, 2)).confidence.isnan().tolist() == [True] * 3


def test_a_second_opinion_has_its_own_name_and_the_same_meaning() -> None:
    other = second_opinion(AGE, "morph2")
    assert (other.name, other.kind, other.sensitive) == ("age_morph2", Kind.YEARS, True)
