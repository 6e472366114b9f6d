"""Losses for training face embeddings, by name. Each is built for a dimension and a number of people."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from models.losses.margin import (
    arcface,
    cosface,
    elastic_arcface,
    elastic_arcface_plus,
    elastic_cosface,
    elastic_cosface_plus,
)
from models.losses.sface import SFace
from models.losses.triplet import TripletLoss


def _triplet(dimension: int, classes: int) -> TripletLoss:
    return TripletLoss()  # has no class centres


# Called with (dimension, classes) each gives a module that maps embeddings (N, dimension) and labels (N,) to a loss ().
LOSSES: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType({
    "arcface": arcface,
    "cosface": cosface,
    "elastic-arcface": elastic_arcface,
    "elastic-arcface-plus": elastic_arcface_plus,
    "elastic-cosface": elastic_cosface,
    "elastic-cosface-plus": elastic_cosface_plus,
    "sface": SFace,
    "triplet": _triplet,
})  # fmt: skip
