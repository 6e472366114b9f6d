"""A head: a linear layer or small perceptron that reads an attribute off the embeddings of a frozen recognition model.

The few-shot protocol of Bulat et al., "Pre-training strategies and datasets for facial representation learning", ECCV 2022
(arXiv:2103.16554). Probabilities are calibrated by one temperature (Guo et al., ICML 2017, Section 4.2).

Every recognition model of the table has a head for every category and every yes-or-no attribute of the vocabulary, under the
name MODEL-ATTRIBUTE. The weights are those of the backbone, so that a version is whole by itself, and the head's beside them.
"""

import re
from collections.abc import Mapping
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attributes.heads import Perceptron
from models.checkpoint import load, shape_of
from models.spec import Attribute, CheckpointMismatch, Estimate, Kind, ModelSpec, Role, StateDict
from models.vocabulary import ATTRIBUTES, category, probability

BACKBONE = "backbone."
YES_NO = ("no", "yes")
TRAINABLE: Mapping[str, Attribute] = {
    name: attribute for name, attribute in ATTRIBUTES.items() if attribute.kind in (Kind.CATEGORY, Kind.PROBABILITY)
}


class Head(nn.Module):
    """Embeddings (N, D) of unit length to calibrated logits (N, classes): centred and scaled, a perceptron, a temperature."""

    mean: Tensor
    spread: Tensor
    temperature: Tensor

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(widths[0]))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("temperature", torch.ones(()))
        self.perceptron = Perceptron(*widths)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.perceptron((vectors - self.mean) / self.spread) / self.temperature


class Headed(nn.Module):
    """A frozen backbone and a head: the backbone's inputs to the head's logits (N, classes)."""

    def __init__(self, backbone: nn.Module, head: Head, mirror: bool) -> None:
        super().__init__()
        self.backbone, self.head, self.mirror = backbone.requires_grad_(False), head, mirror

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.backbone(x)
        return self.head(F.normalize(vectors + self.backbone(x.flip(3)) if self.mirror else vectors))


def classes_of(attribute: Attribute) -> tuple[str, ...]:
    """What a head of this attribute tells apart, in the order of its outputs."""
    return YES_NO if attribute.kind is Kind.PROBABILITY else attribute.classes


@cache
def headed(base: ModelSpec, attribute: Attribute) -> ModelSpec:
    """The entry of the model table for a head on a recognition model; its depth and widths are read from the weights."""
    return ModelSpec(
        name=f"{base.name}-{attribute.name}",
        role=Role.DESCRIBE,
        title=f"{attribute.name} from the embeddings of {base.name}",
        licence=f"{base.licence} (backbone); head: that of what it was trained on",
        source=f"a training of your own: visage train attributes --backbone {base.name} --attribute {attribute.name}",
        paper="arXiv:2103.16554",
        build=partial(build, base=base, attribute=attribute),
        preprocess=base.preprocess,
        settings="mirror" if base.mirror else "",
        attributes=(attribute,),
        interpret=partial(interpret, attribute=attribute),
        reads=base.name,
        notes=f"Backbone: {base.name} ({base.source}).",
    )


def build(state_dict: StateDict, base: ModelSpec, attribute: Attribute) -> Headed:
    """Build the head that `state_dict` belongs to on `base`.

    Raises:
        CheckpointMismatch: naming the keys that don't fit, or if it tells other classes apart.
    """
    depth = len({m[1] for key in state_dict if (m := re.match(r"head\.perceptron\.layers\.(\d+)\.weight$", key))})
    if not depth:
        raise CheckpointMismatch(f"The weights have no head; {base.name}-{attribute.name} is a head on {base.name}.")
    shapes = [shape_of(state_dict, f"head.perceptron.layers.{i}.weight") for i in range(depth)]
    classes = classes_of(attribute)
    if shapes[-1][0] != len(classes):
        raise CheckpointMismatch(
            f"The head tells {shapes[-1][0]} classes apart, {attribute.name} has {len(classes)}: {', '.join(classes)}. "
            "Is it a head of another attribute?"
        )
    own = {key.removeprefix(BACKBONE): value for key, value in state_dict.items() if key.startswith(BACKBONE)}
    head = Head(shapes[0][1], *(out for out, _ in shapes))
    return load(Headed(base.build(own), head, base.mirror), state_dict, f"{base.name}-{attribute.name}")


def interpret(logits: Tensor, attribute: Attribute) -> dict[str, Estimate]:
    """Read the logits (N, classes) as an estimate of the attribute."""
    if attribute.kind is Kind.PROBABILITY:
        return {attribute.name: probability(logits.softmax(dim=1)[:, 1])}
    return {attribute.name: category(attribute, logits.softmax(dim=1), attribute.classes)}
