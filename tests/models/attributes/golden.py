"""What the attribute models' tests share: seeded checkpoints as released, taps, and the references' own words."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference import seeded, shared

TOLERANCE = 1e-4  # as the references state


def goldens(model: str, file: str = "golden.npz") -> Mapping[str, np.ndarray]:
    """Return the official code's outputs by name."""
    with np.load(shared(f"reference/{model}/{file}")) as arrays:
        return {name: arrays[name] for name in arrays.files}


def seeded_checkpoint(model: str, table: str = "state_dict.tsv") -> dict[str, dict[str, Tensor]]:
    """Return the seeded weights nested as in the released file: the first part of a key is the file's entry."""
    return _nested(seeded().seeded_state_dict(shared(f"reference/{model}/{table}")))


def empty_checkpoint(model: str, table: str) -> dict[str, dict[str, Tensor]]:
    """Return a released file's keys and shapes, nested, with weights that say nothing: for tests of names alone."""
    with shared(f"reference/{model}/{table}").open(newline="") as rows:
        shapes = {row["key"]: row["shape"] for row in csv.DictReader(rows, delimiter="\t")}
    return _nested({key: torch.empty([int(n) for n in shape.split(",") if n]) for key, shape in shapes.items()})


def _nested(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    nested: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        entry, _, rest = key.partition(".")
        nested.setdefault(entry, {})[rest] = value
    return nested


def seeded_crops(size: int) -> Tensor:
    """Return the goldens' two pictures, (2, 3, size, size) in 0..1."""
    return torch.cat([seeded().seeded_image(name, size) for name in ("golden-0", "golden-1")])


def readme(model: str) -> str:
    """Return the reference's README with its line breaks taken for spaces."""
    return re.sub(r"\s+", " ", shared(f"reference/{model}/README.md").read_text(encoding="utf-8"))


def listed(text: str, start: str, end: str) -> list[str]:
    """Return the comma-separated items between two phrases."""
    after = text[text.index(start) + len(start) :]
    return [item.strip() for item in after[: after.index(end)].split(",")]


def snake_case(label: str) -> str:
    """Turn a reference's name of a CelebA attribute into the vocabulary's."""
    words = label.replace("'", "").replace(" ", "_").lower().replace("5_o_clock", "five_o_clock")
    return {"male": "gender", "five_oclock_shadow": "five_o_clock_shadow"}.get(words, words)


def assert_tap(name: str, value: Tensor, arrays: Mapping[str, np.ndarray]) -> None:
    """Compare an intermediate with its golden: shape (up to a grid's flattening), first values, mean and deviation."""
    assert value.numel() == np.prod(arrays[f"{name}.shape"]), f"{name}: {tuple(value.shape)}"
    flat = value.flatten().double()
    first = torch.from_numpy(arrays[f"{name}.first64"]).double()
    torch.testing.assert_close(flat[:64], first, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m: f"{name}: {m}")
    stats = torch.stack([flat.mean(), flat.std(correction=0)])
    expected = torch.from_numpy(arrays[f"{name}.stats"])
    torch.testing.assert_close(stats, expected, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m: f"{name}: {m}")


def assert_matches(value: Tensor, expected: np.ndarray) -> None:
    """Compare an output with its golden to the references' tolerance."""
    torch.testing.assert_close(value, torch.from_numpy(expected), atol=TOLERANCE, rtol=TOLERANCE)


@contextmanager
def recorded(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Record every module's last output by its name while the network runs: what isn't there wasn't run."""
    outputs: dict[str, Any] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(record(name)) for name, module in network.named_modules()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
