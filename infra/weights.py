"""The cache of converted weights: `<folder>/<model>/<digest>/` with `weights.safetensors` and `manifest.json`.

A projection of what it was converted from: it can be deleted and is made again. Folders appear complete or not at all, since
they are written beside, synced to disk and renamed into place. The digest (SHA-256 of the safetensors file) names the weights
everywhere: safetensors orders tensors by itself, so equal tensors give equal bytes on every machine.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
PARTIAL = ".partial-"  # begins the names of folders in the making
AGAIN = "Run 'visage models install' to restore it, or 'visage models register' if it is a checkpoint of your own."

# Bump when a reader names or computes tensors differently: installed weights are then converted anew.
FORMAT = 1


class WeightsError(RuntimeError):
    """Cached weights are missing or damaged. The message names them and says what to do."""


class Manifest(BaseModel):
    """What lies beside the weights. `origin`: name and SHA-256 of each file that they were converted from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    model: str
    digest: str
    size: int
    tensors: int
    licence: str
    source: str
    origin: dict[str, str]
    created: datetime


@dataclass(frozen=True)
class Stored:
    """Complete weights in the cache."""

    folder: Path
    manifest: Manifest


def folder_of(weights_dir: Path, model: str, digest: str) -> Path:
    """Return where the weights with this digest lie."""
    return weights_dir / model / digest[:16]


def store(
    weights_dir: Path, model: str, state: Mapping[str, Tensor], *, licence: str, source: str, origin: Mapping[str, str]
) -> Stored:
    """Write a state dict into the cache. Does nothing if these very weights lie there sound; replaces damaged ones.

    Raises:
        OSError: if the disk is full or not writable; nothing stays behind.
    """
    # Clones, since checkpoints have views and tensors that share their memory, which safetensors refuses.
    data = safetensors.torch.save({key: value.detach().clone().contiguous() for key, value in state.items()})
    digest = hashlib.sha256(data).hexdigest()
    manifest = Manifest(
        format=FORMAT,
        model=model,
        digest=digest,
        size=len(data),
        tensors=len(state),
        licence=licence,
        source=source,
        origin=dict(origin),
        created=datetime.now(UTC),
    )
    target = folder_of(weights_dir, model, digest)
    weights_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=weights_dir) as beside:
        complete = Path(beside) / "complete"
        complete.mkdir()
        _write(complete / WEIGHTS, data)
        _write(complete / MANIFEST, manifest.model_dump_json(indent=2).encode())
        _sync(complete)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.rename(Path(beside) / "replaced")
        complete.rename(target)
        _sync(target.parent)
    return Stored(target, manifest)


def origin(folder: Path) -> dict[str, str]:
    """Return what the weights in a folder were converted from: SHA-256 or digest by name.

    Raises:
        WeightsError: if there are none, or their manifest is damaged.
    """
    return _manifest(folder).origin


def find(weights_dir: Path, model: str, origin: Mapping[str, str]) -> Stored | None:
    """Return sound weights of this model that were converted from exactly `origin`, if there are any."""
    for path in sorted((weights_dir / model).glob(f"*/{MANIFEST}")):
        try:
            stored = Stored(path.parent, _manifest(path.parent))
            if stored.manifest.format == FORMAT and stored.manifest.origin == dict(origin):
                _read(stored.folder, stored.manifest, stored.manifest.digest)
                return stored
        except WeightsError:
            continue  # damaged: as good as absent, and replaced by the next conversion
    return None


def load(folder: Path, digest: str) -> dict[str, Tensor]:
    """Load the weights with this digest, proven (a digest of 67 MB takes about 0.05 s).

    Raises:
        WeightsError: if they are missing or damaged.
    """
    return safetensors.torch.load(_read(folder, _manifest(folder), digest))


def clean(weights_dir: Path) -> None:
    """Remove what killed conversions left behind. Only while no other one runs."""
    for partial in weights_dir.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial)


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise WeightsError(f"There are no weights in {folder}. Run 'visage models install'.") from error
    except ValidationError as error:
        raise WeightsError(f"{folder / MANIFEST} is damaged. {AGAIN}") from error


def _read(folder: Path, manifest: Manifest, digest: str) -> bytes:
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing. {AGAIN}") from error
    if len(data) != manifest.size:
        raise WeightsError(f"{path} has {len(data):,} bytes where {manifest.size:,} belong. {AGAIN}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise WeightsError(f"{path} has changed since it was installed (SHA-256 differs). {AGAIN}")
    return data


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
