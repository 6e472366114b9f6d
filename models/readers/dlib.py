"""Read the networks that dlib's `dnn` module serialises, without dlib.

Only what its face descriptor needs: the layers of a network trained with `loss_metric`, input 150 x 150 RGB. Every byte of the
file is accounted for: anything unexpected raises CheckpointMismatch with the file, the offset and what stood there.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.spec import CheckpointMismatch

NOTHING = torch.empty(0)
# Exponents that stand for +inf, -inf and NaN in a serialised float.
INFINITE, MINUS_INFINITE, NOT_A_NUMBER = 32000, 32001, 32002


@dataclass(frozen=True)
class Layer:
    """One layer as it lies in the file: kind (`con_4`, `affine_`, `relu_`, ...), sizes and learned values.

    A convolution's `weight` is (out, in, kh, kw), a fully connected one's (in, out); an affine's `weight` and `bias`
    (channels,) are factor and offset per channel; layers that learn nothing have empty ones. `window` (rows, columns) is zero
    for a pooling over the whole map.
    """

    kind: str
    weight: Tensor = NOTHING
    bias: Tensor = NOTHING
    window: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def form(self) -> tuple[str, tuple[int, int], tuple[int, int], tuple[int, int]]:
        """What decides how the layer computes, beside its values: kind, window, stride, padding."""
        return self.kind, self.window, self.stride, self.padding


class Stream:
    """dlib's primitive encodings, read one after the other from a whole file in memory."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.data = memoryview(path.read_bytes())
        self.offset = 0

    def fail(self, what: str) -> CheckpointMismatch:
        return CheckpointMismatch(
            f"{self.name}, byte {self.offset}: {what}. This is not dlib's face descriptor network, or the file is damaged: "
            "fetch it again."
        )

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.offset:
            raise self.fail(f"the file ends {count - len(self.data) + self.offset} bytes too early")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    @property
    def at_end(self) -> bool:
        return self.offset == len(self.data)

    def integer(self) -> int:
        """One head byte (bit 7: negative, low four bits: number of bytes), then the magnitude, little-endian."""
        head = self.take(1)[0]
        length = head & 0x0F
        if not 1 <= length <= 8 or head & 0x70:
            raise self.fail(f"byte 0x{head:02x} does not begin an integer")
        magnitude = int.from_bytes(self.take(length), "little")
        return -magnitude if head & 0x80 else magnitude

    def real(self) -> float:
        """Mantissa and binary exponent, both integers."""
        mantissa, exponent = self.integer(), self.integer()
        special = {INFINITE: math.inf, MINUS_INFINITE: -math.inf, NOT_A_NUMBER: math.nan}
        try:
            return special[exponent] if exponent in special else math.ldexp(mantissa, exponent)
        except OverflowError:
            raise self.fail(f"no number is {mantissa} * 2^{exponent}") from None

    def string(self) -> str:
        length = self.integer()
        if not 0 <= length <= 64:
            raise self.fail(f"a layer's name of {length} bytes")
        return bytes(self.take(length)).decode("latin-1")

    def expect(self, *values: int | str | float) -> None:
        """Read as many values of the same types; only exactly these are right."""
        for value in values:
            found: int | str | float
            if isinstance(value, str):
                found, right = (text := self.string()), text == value
            elif isinstance(value, float):
                found, right = (number := self.real()), math.isclose(number, value, rel_tol=1e-6)
            else:
                found, right = (count := self.integer()), count == value
            if not right:
                raise self.fail(f"{found!r} where {value!r} belongs")

    def tensor(self) -> np.ndarray:
        """Version 2, four sizes (samples, channels, rows, columns), float32 values; returned flat."""
        self.expect(2)
        count = math.prod(self.integer() for _ in range(4))
        if count < 0:
            raise self.fail("a tensor of negative size")
        return np.frombuffer(self.take(4 * count), dtype="<f4")

    def alias(self) -> tuple[int, ...]:
        """A shape that belongs to values read before."""
        self.expect(1)
        return tuple(self.integer() for _ in range(4))

    def split(self, values: np.ndarray, first: tuple[int, ...], second: int) -> tuple[Tensor, Tensor]:
        if min(first) < 1 or values.size != math.prod(first) + second:
            raise self.fail(f"{values.size} values for a layer of shape {first} and {second} more")
        copied = torch.from_numpy(values.astype(np.float32))
        return copied[: math.prod(first)].reshape(first), copied[math.prod(first) :]


def read_layers(path: Path) -> list[Layer]:
    """Read the layers of a descriptor network, from input to output.

    The outermost object is written first, so all layers' versions precede all layers' contents.

    Raises:
        CheckpointMismatch: for anything but a complete file of this form, without a byte more.
    """
    stream = Stream(path)
    stream.expect(1, "loss_metric_2", 0.04, 0.6)
    while (version := stream.integer()) in (
        1,
        2,
    ):  # of every layer but the first: 1 for mere connections, 2 for the others
        pass
    if version != 3:
        raise stream.fail(f"layer version {version} where 1, 2 or 3 belongs")
    stream.expect("input_rgb_image_sized", 122.78199768, 117.00099945, 104.29799652, 150, 150)
    layers = [_layer(stream)]
    stream.expect(1)  # closes the record of the layer that holds the input
    while not stream.at_end:
        layers.append(_layer(stream))
    return layers


def _layer(stream: Stream) -> Layer:
    kind = stream.string()
    layer = _details(stream, kind)
    if any(flag not in b"01" for flag in stream.take(3)):
        raise stream.fail(f"the flags of layer {kind!r} are neither 0 nor 1")
    if any(stream.tensor().size for _ in range(3)):
        raise stream.fail(f"layer {kind!r} carries training state")
    return layer


def _details(stream: Stream, kind: str) -> Layer:
    match kind:
        case "con_4":
            return _convolution(stream)
        case "affine_":
            values = stream.tensor()
            shape = stream.alias()
            if stream.alias() != shape:
                raise stream.fail("an affine layer whose factors and offsets differ in number")
            stream.expect(0)
            weight, bias = stream.split(values, shape[1:2], shape[1])
            return Layer(kind, weight, bias)
        case "relu_" | "add_prev_":
            return Layer(kind)
        case "max_pool_2" | "avg_pool_2":
            return Layer(kind, window=_pair(stream), stride=_pair(stream), padding=_pair(stream))
        case "fc_2":
            outputs, inputs = stream.integer(), stream.integer()
            values = stream.tensor()
            stream.expect(1, inputs, outputs, 1, 1)
            stream.expect(1, 0, 0, 0, 0)  # no values for a bias
            stream.expect(1)  # a layer without bias
            stream.expect(1.0, 1.0, 1.0, 0.0)
            return Layer(kind, stream.split(values, (inputs, outputs), 0)[0])
    raise stream.fail(f"a layer of unknown kind {kind!r}")


def _convolution(stream: Stream) -> Layer:
    values = stream.tensor()
    filters, window, stride, padding = stream.integer(), _pair(stream), _pair(stream), _pair(stream)
    shape = stream.alias()
    if shape[0] != filters or shape[2:] != window:
        raise stream.fail(f"a convolution of {filters} filters of {window} with weights {shape}")
    stream.expect(1, 1, filters, 1, 1)
    stream.expect(1.0, 1.0, 1.0, 0.0)  # factors of learning rate and weight decay
    weight, bias = stream.split(values, shape, filters)
    return Layer("con_4", weight, bias, window, stride, padding)


def _pair(stream: Stream) -> tuple[int, int]:
    return stream.integer(), stream.integer()
