"""Putting weights into a network, and saying exactly what does not fit."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

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


def unwrap(checkpoint: Mapping[str, Any], *nests: str) -> dict[str, Tensor]:
    """Take the state dict out of a released checkpoint: from under the first of `nests` that it has, else from its top.

    DataParallel's prefix `module.` is taken off if every key carries it.

    Raises:
        CheckpointMismatch: if what lies there are not tensors by name.
    """
    inner = next((checkpoint[nest] for nest in nests if isinstance(checkpoint.get(nest), Mapping)), checkpoint)
    strangers = sorted(
        str(key) for key, value in inner.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    )
    if strangers or not inner:
        found = f"entries that are no tensors by name: {_first(strangers)}" if strangers else "nothing"
        raise CheckpointMismatch(f"The file holds no state dict, but {found}. Is it a checkpoint of this model?")
    prefix = "module." if all(key.startswith("module.") for key in inner) else ""
    return {key.removeprefix(prefix): value for key, value in inner.items()}


def shape_of(state_dict: StateDict, key: str) -> tuple[int, ...]:
    """Return the shape of a tensor from which an architecture is read.

    Raises:
        CheckpointMismatch: if there is none of that name.
    """
    if key not in state_dict:
        held = _first(sorted(state_dict)) or "nothing"
        raise CheckpointMismatch(f"The weights have no {key!r} (they have {held}). Are they of another model?")
    return tuple(state_dict[key].shape)


def _first(keys: list[str], count: int = 5) -> str:
    return ", ".join(keys[:count]) + (" ..." if len(keys) > count else "")
