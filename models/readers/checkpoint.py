"""Read checkpoints as their authors released them: files of torch, safetensors, and numpy arrays. Nothing is executed.

What a file is, its first bytes say and not its name, which is lost on many a way from a server.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from models.spec import CheckpointMismatch

NUMPY = b"\x93NUMPY"
ZIP = b"PK\x03\x04"  # torch's files since 1.6, and .npz
GZIP, TAR, TAR_AT = b"\x1f\x8b", b"ustar", 257
TORCH_BEFORE_1_6 = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # a number that torch.save pickles first of all
PICKLE = b"\x80"  # of protocol 2 or later
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
AGAIN = "Fetch it again."
EXECUTED = "it would have to be executed to be read, which is never done here. If you trust its origin,"


def read_checkpoint(paths: Iterable[Path]) -> dict[str, Any]:
    """Read one checkpoint, which may lie in several files: all entries together, nested as they were saved, on the CPU.

    An array file (.npy) is an entry of its own, called like the file; a folder stands for its array files. A file that holds
    objects beside tensors and plain values is refused.

    Raises:
        CheckpointMismatch: if a file cannot be read so, or two files have entries of the same name.
        OSError: if there is no such file, or it may not be read.
    """
    checkpoint: dict[str, Any] = {}
    for path in paths:
        entries = _folder(path) if path.is_dir() else _entries(path)
        if not entries:
            raise CheckpointMismatch(f"{path} holds nothing that could be weights.")
        if twice := sorted(checkpoint.keys() & entries.keys()):
            raise CheckpointMismatch(
                f"{path}: {', '.join(twice[:5])} came from another file already. Name each file once."
            )
        checkpoint |= entries
    return checkpoint


def _folder(path: Path) -> dict[str, Tensor]:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        with _whole(file):
            arrays[file.stem] = _array(file)
    if not arrays:
        raise CheckpointMismatch(
            f"{path} is a folder without array files (.npy) and so holds nothing that could be weights. Name the files in it."
        )
    return arrays


def _entries(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointMismatch(f"{path} is empty. {AGAIN}")
    if head.lstrip().lower().startswith(WEB_PAGE):
        raise CheckpointMismatch(
            f"{path} is a web page, not weights: its address led to a page around the file, a log-in or an error. "
            "Fetch the file itself with a browser."
        )
    with _whole(path):
        if _is_archive(path, head):
            raise CheckpointMismatch(
                f"{path} is an archive of files. Unpack it, and name the checkpoint that is in it."
            )
        if head.startswith(NUMPY):
            return {path.stem: _array(path)}
        if head[8:9] == b"{":
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
            return tensors
        if head.startswith(ZIP) and _holds_arrays(path):
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
    if head.startswith(ZIP) or TORCH_BEFORE_1_6 in head:
        return _torch(path)
    if head.startswith(PICKLE):
        raise CheckpointMismatch(
            f"{path} is a pickle: {EXECUTED} make arrays of it where its code is installed and save them by numpy.savez."
        )
    raise CheckpointMismatch(
        f"{path} is no checkpoint of torch, safetensors or numpy: it begins with {head[:24]!r}. "
        f"Is it the right file, and whole? {AGAIN}"
    )


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever a format's reader stumbles over, the file is at fault: readers of damaged files raise nearly anything."""
    try:
        yield
    except (CheckpointMismatch, MemoryError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointMismatch(f"{path} cannot be read: damaged, or not numbers ({what}). {AGAIN}") from error


def _array(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _holds_arrays(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _is_archive(path: Path, head: bytes) -> bool:
    """Whether files were packed for the way, as servers do with folders; torch's own files are zip archives, too."""
    if head.startswith(GZIP) or head[TAR_AT:].startswith(TAR):
        return True
    if not head.startswith(ZIP):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return not any(name.endswith((".npy", "data.pkl")) for name in names)


def _torch(path: Path) -> Mapping[str, Any]:
    with _whole(path), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if foreign := _foreign(" ".join([str(error), *(str(warning.message) for warning in warned)])):
                raise CheckpointMismatch(f"{path} {foreign}: {_conversion(path)}") from error
            raise
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise CheckpointMismatch(f"{path} holds a {type(loaded).__name__}, not entries by name.")
    return loaded


def _foreign(text: str) -> str:
    """What a file holds that torch would have to execute, by torch's errors and warnings; empty if it is something else."""
    if "TorchScript" in text:
        return "is a TorchScript program"
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"holds more than tensors and plain values ({named[1]})"
    if protocol := re.search(r"Detected pickle protocol (\d+)", text):
        return f"was pickled with protocol {protocol[1]}, not 2, the one that torch reads safely"
    return ""


def _conversion(path: Path) -> str:
    return (
        f"{EXECUTED} make tensors of it where its code is installed, and take those instead: "
        f"python -c \"import torch; c = torch.load('{path.name}', map_location='cpu', weights_only=False); "
        "own = lambda v: v.state_dict() if hasattr(v, 'state_dict') else v; "
        "kept = lambda v: v if isinstance(v, torch.Tensor) else {k: kept(own(w)) for k, w in v.items() "
        "if isinstance(k, str) and isinstance(own(w), (dict, torch.Tensor))}; "
        "torch.save(kept(own(c)), 'tensors.pth')\""
    )
