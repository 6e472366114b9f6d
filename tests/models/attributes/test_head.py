"""Heads are entries of the model table, read from their weights, and read embeddings as they read crops."""

import pytest
import torch

from models import table
from models.attributes.head import TRAINABLE, Head, Headed, headed
from models.recognition.dlib_resnet import DLIB_RESNET, DlibResNet
from models.spec import CheckpointMismatch, Kind, Role
from models.vocabulary import ATTRIBUTES, EXPRESSION

SPEC = headed(DLIB_RESNET, EXPRESSION)


def weights(hidden: int = 0, classes: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    head = Head(128, *([hidden] if hidden else []), classes)
    return Headed(DlibResNet(), head, mirror=DLIB_RESNET.mirror).state_dict()


def test_every_recognition_model_has_a_head_for_every_attribute_with_classes() -> None:
    found = table.spec("dlib-resnet-expression")
    assert (found.name, found.role, found.reads) == ("dlib-resnet-expression", Role.DESCRIBE, "dlib-resnet")
    assert found.attributes == (EXPRESSION,)
    assert found.preprocess == DLIB_RESNET.preprocess
    assert table.spec("lightcnn-9-eyeglasses").attributes == (ATTRIBUTES["eyeglasses"],)
    assert table.spec("dlib-resnet-age_group").attributes[0].sensitive
    assert {attribute.kind for attribute in TRAINABLE.values()} == {Kind.CATEGORY, Kind.PROBABILITY}


@pytest.mark.parametrize("name", ["mtcnn-expression", "dlib-resnet-mood", "dlib-resnet-yaw", "nothing-expression"])
def test_no_head_is_made_up_for_what_is_no_recognition_model_or_has_no_classes(name: str) -> None:
    assert table.find(name) is None
    with pytest.raises(table.UnknownModel, match="heads on recognition models, like dlib-resnet-expression"):
        table.spec(name)


def test_registered_heads_are_listed_once_and_strangers_are_not() -> None:
    names = [spec.name for spec in table.listed(["dlib-resnet-expression", "dlib-resnet", "gone"])]
    assert names.count("dlib-resnet-expression") == names.count("dlib-resnet") == 1
    assert len(names) == len(table.MODELS) + 1


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_head_reads_embeddings_as_its_network_reads_crops(hidden: int) -> None:
    network = SPEC.build(weights(hidden))
    x = torch.randn(2, 3, 150, 150)
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(network.backbone(x) + network.backbone(x.flip(3)))
        torch.testing.assert_close(network(x), network.head(vectors))
    probabilities = SPEC.interpret(network(x))["expression"].probabilities
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))


def test_yes_or_no_is_read_as_a_probability() -> None:
    spec = headed(DLIB_RESNET, ATTRIBUTES["eyeglasses"])
    found = spec.interpret(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))["eyeglasses"]
    torch.testing.assert_close(found.value, torch.tensor([2.0, -3.0]).sigmoid())


def test_a_temperature_changes_how_sure_a_head_is_and_nothing_else() -> None:
    state = weights()
    state["head.temperature"] = torch.tensor(2.0)
    cool, plain = SPEC.build(state), SPEC.build(weights())
    vectors = torch.randn(4, 128)
    torch.testing.assert_close(cool.head(vectors) * 2, plain.head(vectors))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (weights(classes=2), "tells 2 classes apart, expression has 7: .* head of another attribute"),
        (DlibResNet().state_dict(), "The weights have no head; dlib-resnet-expression is a head on dlib-resnet"),
        ({**weights(), "more": torch.zeros(1)}, "1 unexpected: more"),
    ],
)
def test_weights_of_another_head_or_none_are_refused_by_name(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        SPEC.build(state)
