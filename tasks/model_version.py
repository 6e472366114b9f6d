"""A version of a model: which there are, and how its network is loaded on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from infra import weights
from infra.registry import CHAMPION, Registered, Registry
from models import table
from models.restoration.restoreformer import TRAINED_HERE
from models.spec import ModelSpec, Role
from tasks.contract import contract, contract_content


class NotInstalled(LookupError):
    """No version of a model is there to be used. The message says which, and what to do."""


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
        raise NotInstalled(f"{name} is not installed. {how_to_install(model)}")
    return _on_this_machine(model, found, weights_dir)


def load_network(version: ModelVersion) -> nn.Module:
    """Load a version's network on the CPU, in eval mode, after proving its weights by digest.

    Raises:
        WeightsError: if the weights are missing or damaged.
        CheckpointMismatch: if they do not fit this release's network.
    """
    return version.spec.build(weights.load(version.weights, version.digest))


def how_to_install(model: ModelSpec) -> str:
    """What to do for a version of a model, as a sentence."""
    if model.bundled is not None:
        return f"Run 'visage models install{'' if model.role is not Role.COMPARE else f' --name {model.name}'}'."
    if model.source == TRAINED_HERE:
        return f"'{TRAINED_HERE}' makes it of your own pictures."
    return f"Run 'visage models register {model.name} --weights FILE_OR_URL' with its checkpoint of {model.source}."


def _on_this_machine(model: ModelSpec, found: Registered, weights_dir: Path) -> ModelVersion:
    folder = weights.folder_of(weights_dir, model.name, found.digest)
    if not folder.is_dir():
        raise NotInstalled(
            f"Version {found.version} of {model.name} is registered, but its weights are not in {folder} on this machine. "
            f"{how_to_install(model)}"
        )
    return ModelVersion(model.name, found.version, found.digest, folder, model, dict(found.tags))
