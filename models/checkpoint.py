"""Putting weights into a network, and saying exactly what does not fit."""

from typing import TypeVar

from torch import nn

from models.spec import CheckpointMismatch, StateDict

Network = TypeVar("Network", bound=nn.Module)


def load(network: Network, state_dict: StateDict, name: str) -> Network:
    """Load `state_dict` into `network` and return it in eval mode with frozen weights.

    Integer buffers that an architecture derives by itself (num_batches_tracked, relative position indices) may be absent.

    Raises:
        CheckpointMismatch: naming missing, unexpected and mis-shaped keys.
    """
    own = network.state_dict()
    optional = {key for key, value in own.items() if not value.is_floating_point()}
    missing = sorted(own.keys() - state_dict.keys() - optional)
    unexpected = sorted(state_dict.keys() - own.keys())
    shapes = [
        f"{key} (file {tuple(state_dict[key].shape)}, network {tuple(own[key].shape)})"
        for key in sorted(own.keys() & state_dict.keys())
        if own[key].shape != state_dict[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        listed = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in parts if keys)
        raise CheckpointMismatch(
            f"The weights do not fit {name}: {listed}. Is this the checkpoint of another model or variant?"
        )
    network.load_state_dict(dict(state_dict), strict=False)
    return network.eval().requires_grad_(False)


def _first(keys: list[str], count: int = 5) -> str:
    return ", ".join(keys[:count]) + (" ..." if len(keys) > count else "")
