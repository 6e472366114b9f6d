"""A tiny network that describes by every kind of attribute, and versions of models with seeded weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra import weights
from models.checkpoint import load
from models.spec import Color, Estimate, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112
from models.vocabulary import (
    AGE,
    ATTRIBUTES,
    EXPRESSION,
    LANDMARKS_29,
    OCCLUSION_29,
    PARSING,
    YAW,
    category,
    mask,
    probability,
    selected,
    without_confidence,
)
from tasks.model_version import ModelVersion

SIZE = 40
GIVEN = (EXPRESSION, AGE, YAW, ATTRIBUTES["eyeglasses"], LANDMARKS_29, OCCLUSION_29, PARSING)


class Many(nn.Module):
    """(N, 3, 40, 40) to what is wanted, made of the mean colour and the one weight; counts its faces."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.faces = 0
        self.asked: list[frozenset[str]] = []

    def forward(self, x: Tensor, wanted: frozenset[str] | None = None) -> dict[str, Tensor]:
        wanted = selected(wanted, [attribute.name for attribute in GIVEN])
        self.faces += len(x)
        self.asked.append(wanted)
        mean = self.scale * x.mean(dim=(1, 2, 3))
        middle = torch.full((len(x), 29, 2), (SIZE - 1) / 2)
        logits = torch.zeros(len(x), 2, SIZE, SIZE)
        logits[:, 1, : SIZE // 2] = 5  # hair in the upper half
        raw = {
            "expression": torch.stack([4 + 0 * mean, 0 * mean + self.scale, 0 * mean], dim=1),
            "age": 30 + mean,
            "yaw": 10 * mean,
            "eyeglasses": mean,
            "landmarks_29": middle,
            "occlusion_29": -mean.abs()[:, None].expand(-1, 29),  # none is hidden
            "parsing": logits,
        }
        return {name: value for name, value in raw.items() if name in wanted}


def interpret(raw: Mapping[str, Tensor]) -> dict[str, Estimate]:
    read = {
        "expression": lambda v: category(EXPRESSION, v.softmax(dim=1), ("happiness", "neutral", "anger")),
        "eyeglasses": lambda v: probability(v.sigmoid()),
        "occlusion_29": lambda v: probability(v.sigmoid()),
        "parsing": lambda v: mask(PARSING, v, ("background", "hair")),
    }
    return {name: read.get(name, without_confidence)(value) for name, value in raw.items()}


def build(state_dict: StateDict) -> nn.Module:
    return load(Many(), state_dict, "many")


MANY = ModelSpec(
    name="many", role=Role.DESCRIBE, title="Many", licence="MIT", source="this test", paper="", build=build,
    preprocess=Preprocess(ARCFACE_112.scaled("many-40", SIZE), Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3),
    attributes=GIVEN, interpret=interpret,
)  # fmt: skip


def version_of(
    spec: ModelSpec, state: StateDict, folder: Path, origin: Mapping[str, str], number: int = 1
) -> ModelVersion:
    """Put weights into a folder of weights, as installing does, and return the version that they make."""
    stored = weights.store(folder, spec.name, state, licence="MIT", source="here", origin=origin)
    return ModelVersion(spec.name, number, stored.manifest.digest, stored.folder, spec)


def many(folder: Path, scale: float = 1.0, number: int = 1) -> ModelVersion:
    return version_of(MANY, {"scale": torch.tensor([scale])}, folder, {"scale": str(scale)}, number)


def by_chance(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a released layout with small numbers that always are the same; variances stay positive."""
    random = torch.Generator().manual_seed(0)

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(part) for key, part in value.items()}
        return torch.empty(value.shape).normal_(0, 0.05, generator=random).abs_()

    return {key: filled(value) for key, value in checkpoint.items()}
