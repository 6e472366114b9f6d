"""A model table of two tiny models that share a wheel, to install for real in milliseconds.

Also a program, for tests that kill an installation or run two at once:
`python -m tests.tasks.tiny_models WHEELS WEIGHTS URI [PAUSE]`, where it waits after writing the file PAUSE, in mid-conversion.
"""

import hashlib
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from models import table
from models.checkpoint import load
from models.spec import BundledWeights, CheckpointMismatch, ModelSpec, Role, StateDict, Wheel, WheelFile
from tasks.versioning.install import install

FILENAME = "tiny-1.0-py3-none-any.whl"
METADATA = {
    "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def build(state_dict: StateDict) -> nn.Module:
    return load(nn.Linear(4, 4, bias=False), state_dict, "tiny")


def read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    (path,) = files.values()
    values = np.frombuffer(path.read_bytes(), "<f4")
    if values.size != 16:
        raise CheckpointMismatch(f"{path.name}: {values.size} values where 16 belong. Fetch it again.")
    return {"weight": torch.from_numpy(values.reshape(4, 4).copy())}


@dataclass(frozen=True)
class TinyTable:
    """The wheel's path, and the table that pins it."""

    wheel: Path
    models: Mapping[str, ModelSpec]


def tiny_table(
    folder: Path, seed: float = 0, reader: Callable[[Mapping[str, Path]], dict[str, Tensor]] = read
) -> TinyTable:
    """Write a wheel with the weights of `tiny-a` and `tiny-b` to `folder` and pin it. Equal seeds give equal wheels."""
    contents = {f"tiny/{x}.bin": np.full(16, seed + i, "<f4").tobytes() for i, x in enumerate("ab")}
    path = folder / FILENAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (contents | METADATA).items():
            archive.writestr(zipfile.ZipInfo(name), content)
    models = {}
    for x in "ab":
        content = contents[f"tiny/{x}.bin"]
        file = WheelFile(f"tiny/{x}.bin", len(content), hashlib.sha256(content).hexdigest())
        name = f"tiny-{x}"
        models[name] = ModelSpec(
            name=name, role=Role.EMBED, title=name, licence="MIT", source="https://example.org", paper="", build=build,
            dimension=4, bundled=BundledWeights(pinned(path), (file,), reader),
        )  # fmt: skip
    return TinyTable(path, MappingProxyType(models))


def pinned(path: Path) -> Wheel:
    return Wheel("tiny", "1.0", FILENAME, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def with_wheel(model: ModelSpec, wheel: Wheel) -> ModelSpec:
    """The same model, pinned to another wheel."""
    assert model.bundled is not None
    return replace(model, bundled=replace(model.bundled, wheel=wheel))


def left_in(folder: Path) -> list[str]:
    """What lies in a folder of weights, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def main(wheels: str, weights: str, uri: str, pause: str = "") -> None:
    def pausing(files: Mapping[str, Path]) -> dict[str, Tensor]:
        if pause:
            Path(pause).touch()
            time.sleep(600)
        return read(files)

    table.MODELS = tiny_table(Path(wheels), reader=pausing).models
    for model in install(Path(weights), uri, Path(wheels)):
        print(model.model.name, model.model.version, model.converted, model.champion)


if __name__ == "__main__":
    main(*sys.argv[1:])
