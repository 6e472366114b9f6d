"""Comparing a network with a golden file: outputs of the official code under seeded weights."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from models.spec import ModelSpec
from tests.reference import seeded, shared

Golden = Mapping[str, np.ndarray]


def golden(relative: str) -> Golden:
    with np.load(shared(f"reference/{relative}")) as stored:
        return dict(stored)


def checkpoint(relative: str, gain: float = 1.0) -> dict[str, Tensor]:
    """A file in the official layout with seeded weights; kernels and matrices multiplied by `gain`."""
    state_dict = seeded().seeded_state_dict(shared(f"reference/{relative}"))
    return {key: value * gain if value.ndim >= 2 else value for key, value in state_dict.items()}


def empty_checkpoint(relative: str) -> dict[str, Tensor]:
    """The keys and shapes of such a file, with weights that say nothing: for tests of names alone."""
    with shared(f"reference/{relative}").open(newline="") as rows:
        floats = [row for row in csv.DictReader(rows, delimiter="\t") if row["dtype"].startswith("float")]
    return {row["key"]: torch.empty([int(n) for n in row["shape"].split(",") if n]) for row in floats}


def network(spec: ModelSpec, table: str, gain: float = 1.0) -> nn.Module:
    """Read the seeded checkpoint as the model's released file would be read."""
    return spec.build(spec.official(checkpoint(table, gain)))


def faces(spec: ModelSpec, stored: Golden) -> Tensor:
    """The golden file's faces after the model's own preprocessing."""
    assert spec.preprocess is not None
    channels = int(stored["channels"]) if "channels" in stored else 3
    images = [seeded().seeded_image(str(name), int(stored["size"]), channels) for name in stored["input_names"]]
    return spec.preprocess(255 * torch.cat(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1))


@contextmanager
def taps(module: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the submodules called `names` while the block runs."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def assert_close(actual: Tensor, expected: np.ndarray, scale: float, what: str, tolerance: float = 1e-4) -> None:
    """The largest deviation stays under `tolerance` times `scale`."""
    wanted = torch.from_numpy(np.asarray(expected))
    assert actual.shape == wanted.shape, f"{what}: shape {tuple(actual.shape)}, golden {tuple(wanted.shape)}"
    deviation = float((actual - wanted).abs().max()) / scale
    assert deviation < tolerance, f"{what}: off by {deviation:.1e} of {scale:.3g}"


def assert_taps(outputs: Mapping[str, Tensor], stored: Golden, renamed: Mapping[str, str] | None = None) -> None:
    """Every intermediate that the golden file tells of agrees in shape, statistics and first values, to 1e-4 of its spread."""
    for tap in tap_names(stored):
        value = outputs[(renamed or {}).get(tap, tap)]
        assert list(value.shape) == stored[f"tap/{tap}/shape"].tolist(), tap
        flat, spread = value.flatten(1), float(stored[f"tap/{tap}/std"].max())
        assert_close(flat[:, :64], stored[f"tap/{tap}/first64"], spread, f"first values of {tap}")
        assert_close(flat.mean(dim=1), stored[f"tap/{tap}/mean"], spread, f"mean of {tap}")
        assert_close(flat.std(dim=1, correction=0), stored[f"tap/{tap}/std"], spread, f"spread of {tap}")


def tap_names(stored: Golden) -> list[str]:
    return [key.removeprefix("tap/").removesuffix("/shape") for key in stored if key.endswith("/shape")]


def assert_golden(
    spec: ModelSpec,
    model: nn.Module,
    stored: Golden,
    *,
    renamed: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Embeddings (each as one vector, to `tolerance` of its length) and intermediates are those of the official code."""
    names = [(renamed or {}).get(tap, tap) for tap in tap_names(stored)]
    with torch.inference_mode(), taps(model, names) as outputs:
        embeddings = model(faces(spec, stored))
    assert_taps(outputs, stored, renamed)
    wanted = torch.from_numpy(stored["embedding"])
    length = torch.linalg.vector_norm
    deviation = float((length(embeddings - wanted, dim=1) / length(wanted, dim=1)).max())
    assert deviation < tolerance, f"embedding off by {deviation:.1e} of its length"
