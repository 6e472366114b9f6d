"""Read checkpoints as their authors released them: files of torch, safetensors, and numpy arrays beside them."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from models.spec import CheckpointMismatch


def read_checkpoint(paths: Iterable[Path]) -> dict[str, Any]:
    """Read one checkpoint, which may lie in several files: all entries together, nested as they were saved, on the CPU.

    An array file (`.npy`) is an entry of its own, called like the file; a folder stands for its array files. Nothing of a
    file is executed: one that holds objects beside tensors and plain values is refused.

    Raises:
        CheckpointMismatch: if a file cannot be read so, or two files have entries of the same name.
    """
    checkpoint: dict[str, Any] = {}
    for path in paths:
        entries = _arrays(path.glob("*.npy")) if path.is_dir() else _entries(path)
        if not entries:
            raise CheckpointMismatch(f"{path} holds nothing that could be weights.")
        if twice := sorted(checkpoint.keys() & entries.keys()):
            raise CheckpointMismatch(
                f"{path}: {', '.join(twice[:5])} came from another file already. Name each file once."
            )
        checkpoint |= entries
    return checkpoint


def _entries(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".npy":
        return _arrays([path])
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        if "GLOBAL" in str(error):  # torch met a class or function that is none of its own
            raise CheckpointMismatch(
                f"{path} holds more than tensors and plain values: it would have to be executed to be read, which is never "
                f"done here. If you trust it, save its state dict again with torch.save elsewhere."
            ) from error
        raise CheckpointMismatch(
            f"{path} is damaged or no checkpoint ({type(error).__name__}). Fetch it again."
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointMismatch(f"{path} holds a {type(loaded).__name__}, not entries by name.")
    return loaded


def _arrays(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    try:
        return {path.stem: np.load(path, allow_pickle=False) for path in sorted(paths)}
    except (ValueError, EOFError) as error:
        raise CheckpointMismatch(f"An array file cannot be read: {error}. Fetch it again.") from error
