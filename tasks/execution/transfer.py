"""To a GPU and back: by way of pinned memory, and with as few waits as possible. On a CPU nothing is copied."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray, device: str) -> Tensor:
    """Return `values` as a tensor on `device`; the caller goes on while they are on their way."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it has been read


def download(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as arrays, by name, with one wait for all that lie on a GPU."""
    here = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}  # pinned, where copied
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return {name: tensor.numpy() for name, tensor in here.items()}
