"""Register a released checkpoint, from files or from addresses, as a version of a model of the table.

Nothing of the files is executed. They are read, proven to fit the network, converted to safetensors and registered; whatever
fails on the way leaves nothing behind, neither in the cache nor in the registry.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from infra import weights
from infra.download import download, local_path
from infra.registry import Registry
from infra.wheels import sha256
from models import table
from models.readers.checkpoint import read_checkpoint
from models.spec import CheckpointMismatch, ModelSpec
from tasks.versioning.install import Installed, register

Progress = Callable[[str, int, int | None], None]


class WrongDigest(ValueError):
    """A file is another one than was asked for."""


def add_checkpoint(
    name: str,
    sources: Sequence[str | Path],
    weights_dir: Path,
    tracking_uri: str,
    digests: Sequence[str] = (),
    on_download: Progress = lambda url, done, total: None,
) -> Installed:
    """Install a released checkpoint as a version of the model; it becomes champion where there is none yet.

    A source is a file, a folder, which stands for the arrays (.npy) in it, or an http, https or file address. A checkpoint in
    several files names them all: DFDNet's network and dictionary, PETALface's backbone and quality network. `digests`, if
    given, are the SHA-256 of the sources, in their order.

    Raises:
        UnknownModel: if no model of the table is called so.
        CheckpointMismatch: if the files are not a checkpoint of this model.
        WrongDigest: if a file has another SHA-256 than that in `digests`.
        DownloadError: if an address cannot be fetched.
        OSError: if a file cannot be read, or the disk is full.
    """
    model = table.spec(name)
    weights_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(weights_dir / ".lock"):
        weights.clean(weights_dir)
        with tempfile.TemporaryDirectory(prefix=weights.PARTIAL, dir=weights_dir) as scratch:
            paths = [_fetched(str(source), Path(scratch, str(i)), on_download) for i, source in enumerate(sources)]
            _prove(sources, paths, digests)
            try:
                state = _state(model, paths)
            except CheckpointMismatch as error:
                raise CheckpointMismatch(_by_source(str(error), paths, sources)) from error
            origin = _origin(paths, sources)
        stored = weights.find(weights_dir, name, origin)
        converted = stored is None
        if stored is None:
            stored = weights.store(weights_dir, name, state, licence=model.licence, source=model.source, origin=origin)
        return register(Registry(tracking_uri), model, model.source, stored, converted)


def _fetched(source: str, folder: Path, on_download: Progress) -> Path:
    path = local_path(source)
    if path is not None:
        return path
    folder.mkdir()
    return download(source, folder, lambda done, total: on_download(source, done, total))


def _prove(sources: Sequence[str | Path], paths: Sequence[Path], digests: Sequence[str]) -> None:
    if not digests:
        return
    if len(digests) != len(paths):
        raise WrongDigest(f"{len(digests)} SHA-256 for {len(paths)} files: give one for each, in their order, or none.")
    for source, path, expected in zip(sources, paths, digests, strict=True):
        if path.is_dir():
            raise WrongDigest(f"{source} is a folder, which has no SHA-256: name the files in it.")
        if (found := sha256(path)) != expected.strip().lower():
            raise WrongDigest(
                f"{source} has SHA-256 {found} where {expected} is asked for: it is another file, or not whole. "
                "Nothing was installed."
            )


def _state(model: ModelSpec, paths: Sequence[Path]) -> dict[str, Tensor]:
    """The files' weights in the network's own names, which it was built with as a proof."""
    state = model.official(read_checkpoint(paths))
    model.build(state)
    wrong = sorted(key for key, value in state.items() if not bool(torch.isfinite(value).all()))
    if wrong:
        raise CheckpointMismatch(
            f"{len(wrong)} tensors hold values that are not finite: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}. "
            "Did its training diverge?"
        )
    return state


def _by_source(message: str, paths: Sequence[Path], sources: Sequence[str | Path]) -> str:
    """The message with the address of a download in the place of the temporary file."""
    for path, source in zip(paths, sources, strict=True):
        message = message.replace(str(path), str(source))
    return message


def _origin(paths: Sequence[Path], sources: Sequence[str | Path]) -> Mapping[str, str]:
    """SHA-256 of every file by its name, or by where it comes from if two have the same."""
    files = [
        (file, f"{source}/{file.name}" if path.is_dir() else str(source))
        for path, source in zip(paths, sources, strict=True)
        for file in (sorted(path.glob("*.npy")) if path.is_dir() else [path])
    ]
    count = Counter(file.name for file, _ in files)
    return {file.name if count[file.name] == 1 else source: sha256(file) for file, source in files}
