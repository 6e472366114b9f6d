"""Read the weights of a Keras 2 model saved as HDF5, with torch's order of axes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.spec import CheckpointMismatch

if TYPE_CHECKING:
    import h5py

# Keras keeps kernels as (rows, columns, in, out), depthwise ones as (rows, columns, channels, 1).
AXES = {"kernel": (3, 2, 0, 1), "pointwise_kernel": (3, 2, 0, 1), "depthwise_kernel": (2, 3, 0, 1)}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all weights as `<layer>.<name>` (`conv2d_1.kernel`, `batch_normalization_1.moving_mean`), float32.

    Kernels come as torch's (out, in / groups, kh, kw). The optimiser's state is left out.

    Raises:
        CheckpointMismatch: if this is no complete HDF5 file of a Keras 2 model.
    """
    import h5py  # noqa: PLC0415 - a fifth of a second, of every process that knows the models

    again = "It is damaged or no Keras 2 model: fetch it again."
    tensors: dict[str, Tensor] = {}

    def collect(name: str, item: "h5py.Group | h5py.Dataset") -> None:
        if not isinstance(item, h5py.Dataset):
            return
        layer, *_, weight = name.removesuffix(":0").split("/")
        values = np.asarray(item[()], dtype=np.float32)
        if values.ndim == 4:
            values = values.transpose(AXES[weight])
        tensors[f"{layer}.{weight}"] = torch.from_numpy(np.ascontiguousarray(values))

    try:
        with h5py.File(path, "r") as file:
            file["model_weights"].visititems(collect)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointMismatch(f"{path.name}: {error}. {again}") from error
    return tensors
