"""Constants beside the data that they are used on."""

from collections.abc import Sequence

import torch
from torch import Tensor


def constant(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """Return `values` as a tensor on `device`, of the dtype that they have as Python numbers.

    Without waiting: `torch.tensor(values, device=...)` holds the caller up until a GPU has done all that came before.
    """
    return torch.tensor(values).to(device, non_blocking=True)
