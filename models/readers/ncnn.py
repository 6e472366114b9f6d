"""Read the convolutions of an ncnn model: a text of layers (`.param`) and their values back to back (`.bin`)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.spec import CheckpointMismatch

MAGIC = "7767517"
FLAGS = {0x01306B47: "<f2", 0: "<f4"}  # how the values behind a flag are stored
WITHOUT_VALUES = {"BinaryOp", "Concat", "Eltwise", "Input", "Interp", "Pooling", "ReLU", "Split"}
AGAIN = "The file is damaged or belongs to another model: fetch it again."


@dataclass(frozen=True)
class Convolution:
    """`weight` (out, in, kh, kw) and `bias` (out,), float32, with the layer's name in the file."""

    name: str
    weight: Tensor
    bias: Tensor


def read_convolutions(param: Path, values: Path) -> list[Convolution]:
    """Read all convolutions, in the order of the file.

    Weights are float16 or float32, as a flag before them tells; biases are always float32.

    Raises:
        CheckpointMismatch: for another format, a layer that holds other values, or a byte too few or too many.
    """
    data = memoryview(values.read_bytes())
    offset = 0
    convolutions = []

    def take(layer: str, count: int, dtype: str) -> np.ndarray:
        nonlocal offset
        end = offset + count * np.dtype(dtype).itemsize
        if end > len(data):
            raise CheckpointMismatch(f"{values.name}: ends at byte {len(data)}, {layer} reaches to {end}. {AGAIN}")
        taken = np.frombuffer(data[offset:end], dtype=dtype)
        offset = end + -end % 4
        return taken

    for name, filters, kernel, count in _convolutions(param):
        flag = int(take(name, 1, "<u4")[0])
        if flag not in FLAGS:
            raise CheckpointMismatch(
                f"{values.name}: {name} is stored as 0x{flag:08x}; known are float16 (0x01306b47) and float32 (0). {AGAIN}"
            )
        weight = torch.from_numpy(take(name, count, FLAGS[flag]).astype(np.float32))
        bias = torch.from_numpy(take(name, filters, "<f4").astype(np.float32))
        convolutions.append(Convolution(name, weight.reshape(filters, -1, kernel, kernel), bias))
    if offset != len(data):
        raise CheckpointMismatch(f"{values.name}: {len(data) - offset} bytes follow the last layer. {AGAIN}")
    return convolutions


def _convolutions(param: Path) -> list[tuple[str, int, int, int]]:
    """Return name, filters, kernel side and number of weights of every convolution."""
    try:
        lines = param.read_text("ascii").splitlines()
        if lines[0].strip() != MAGIC:
            raise CheckpointMismatch(f"{param.name}: begins with {lines[0][:20]!r}, not with ncnn's {MAGIC}. {AGAIN}")
        if len(lines) != 2 + int(lines[1].split()[0]):
            raise CheckpointMismatch(
                f"{param.name}: {len(lines) - 2} layers where {lines[1].split()[0]} belong. {AGAIN}"
            )
        return [row for row in map(_layer, lines[2:]) if row is not None]
    except CheckpointMismatch:
        raise
    except (IndexError, KeyError, ValueError) as error:
        raise CheckpointMismatch(f"{param.name}: not the text of an ncnn model ({error!r}). {AGAIN}") from error


def _layer(line: str) -> tuple[str, int, int, int] | None:
    kind, name, inputs, outputs, *rest = line.split()
    if kind in WITHOUT_VALUES:
        return None
    if kind != "Convolution":
        raise CheckpointMismatch(f"{name}: layers of kind {kind} are not read here. {AGAIN}")
    keys = dict(pair.split("=") for pair in rest[int(inputs) + int(outputs) :])
    filters, kernel, has_bias, count = (int(keys[key]) for key in ("0", "1", "5", "6"))
    if min(filters, kernel, count) < 1 or has_bias != 1 or count % (filters * kernel * kernel):
        raise CheckpointMismatch(
            f"{name}: {count} weights for {filters} filters of {kernel} x {kernel} with bias. {AGAIN}"
        )
    return name, filters, kernel, count
