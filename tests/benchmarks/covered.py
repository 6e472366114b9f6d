"""How well coverings before a face are noticed, and how often an ordinary face is taken for covered.

    python -m tests.benchmarks.covered fit        make models/covered.safetensors from one half of LFW's people
    python -m tests.benchmarks.covered            judge on the other half
    python -m tests.benchmarks.covered expression how right and how sure mini-Xception is there

Coverings are drawn (tests/coverings.py) on the pictures of `lfw_grey_128.tar`, stored as JPEG, and go the whole way: a face
that the detector no longer finds has no row to be wrong in, and is counted apart. Thresholds come from the half of `fit`;
`shipped` is how often at least a fifth of a face counts as covered, `factor` the mean of what confidences are multiplied by.
"""

import csv
import sys
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from infra.settings import Settings, load_settings
from models.covered import AREAS, STATISTICS, Area, covered_share, descriptors, likeness, statistics
from models.quality import QUALITY_TEMPLATE
from models.spec import Role
from models.vocabulary import EXPRESSION
from tasks.describe import describe_crops
from tasks.detect import Decoded
from tasks.evaluation.central_face import FaceFinder, template_of
from tasks.execution.inference import load_for_inference
from tasks.photo_faces import LANDMARKS, PORTRAIT, crop, estimate
from tasks.recipe import version_for
from tests.coverings import COVERINGS, cover
from tests.portraits import jpeg
from tests.reference import shared

ARCHIVE = "data/lfw_grey_128.tar"
LOW, HIGH = 1 / 200, 1 / 65  # of ordinary faces
REGULARISATION = 0.01  # of the mean variance
SHOWN = 400  # pictures that every covering is drawn on


def names_of_half(half: int) -> list[str]:
    """Pictures of one half of the people, of each person all or none."""
    with tarfile.open(shared(ARCHIVE)) as archive:
        names = sorted(member.name.removeprefix("./") for member in archive if member.isfile())
    return [name for name in names if zlib.crc32(name.rsplit("_", 1)[0].encode()) % 2 == half]


def finder(settings: Settings) -> FaceFinder:
    return FaceFinder(settings, version_for(Role.DETECT, settings.detect_model, settings))


def portraits(find: FaceFinder, found: Sequence[Decoded]) -> Tensor:
    """Crops (N, 256, 256, 3)."""
    none = np.zeros((0, 256, 256, 3), np.uint8)
    rows = [find.align(item, [QUALITY_TEMPLATE]).arrays[PORTRAIT] for item in found]
    return torch.from_numpy(np.concatenate([none, *rows]))


def fit() -> None:
    """Write the statistics."""
    find, parts = finder(load_settings()), list[dict[str, Tensor]]()
    for found in find.look_through(shared(ARCHIVE), names_of_half(0)):
        crops = portraits(find, found)
        parts += [descriptors(crops), descriptors(crops.flip(2))]
    values: dict[str, Tensor] = {}
    for name in AREAS:
        ordinary = torch.cat([part[name] for part in parts])
        mean, covariance = ordinary.mean(dim=0), ordinary.T.cov()
        covariance += REGULARISATION * covariance.trace() / len(mean) * torch.eye(len(mean))
        whitening = torch.linalg.cholesky(torch.linalg.inv(covariance)).half().float()
        typical = [F.normalize(mean @ whitening, dim=0)]
        if name == "mouth":  # a cloth's pattern is like the mean in being strong everywhere: ask for the rest as well
            same = F.normalize(torch.ones_like(mean) @ whitening, dim=0)
            typical.append(F.normalize(typical[0] - typical[0] @ same * same, dim=0))
        area = Area(whitening, torch.stack(typical), torch.zeros(0), torch.zeros(0))
        low, high = likeness(ordinary, area).quantile(torch.tensor([LOW, HIGH]), dim=0)
        area = Area(whitening, area.typical, low, high)
        values |= {f"{name}.{part}": value.half().contiguous() for part, value in vars(area).items()}
        print(f"{name}: {len(ordinary)} faces, {ordinary.shape[1]} numbers, low {low.tolist()}, high {high.tolist()}")
    save_file(values, STATISTICS)


def surprise(crops: Tensor) -> NDArray[np.float64]:
    """How unlike ordinary faces, on the scale of the thresholds (0 at `high`, 1 at `low`), the worse area is (N,)."""
    areas = descriptors(crops)
    worst = [
        ((area.high - likeness(areas[name], area)) / (area.high - area.low)).amax(dim=1)
        for name, area in statistics().items()
    ]
    return torch.stack(worst).amax(dim=0).double().numpy()


@dataclass
class Judged:
    """One kind of picture: how many there were, and of those with a face (n,) the surprise and the share covered."""

    pictures: int
    surprise: NDArray[np.float64]
    covered: NDArray[np.float64]


def drawn(find: FaceFinder, found: Sequence[Decoded], kind: str | None, rng: np.random.Generator) -> list[Decoded]:
    """Those of the pictures in which a face is found although a covering is drawn before it."""
    if kind is None:
        return list(found)
    pictures = [cover(item.picture.pixels, item.photo.arrays[LANDMARKS][0], kind, rng) for item in found]
    return find([(item.photo.key, jpeg(pixels)) for item, pixels in zip(found, pictures, strict=True)])


def judged(find: FaceFinder, names: Sequence[str], kind: str | None) -> Judged:
    """Look at pictures, with a covering drawn where the face was found without it."""
    rng, surprises, shares, count = np.random.default_rng(6), [np.zeros(0)], [np.zeros(0)], 0
    for found in find.look_through(shared(ARCHIVE), names):
        count += len(found)
        crops = portraits(find, drawn(find, found, kind, rng))
        surprises.append(surprise(crops))
        shares.append(covered_share(crops).double().numpy())
    return Judged(count, np.concatenate(surprises), np.concatenate(shares))


def measure() -> None:
    """Print the table."""
    find = finder(load_settings())
    chosen, plain = judged(find, names_of_half(0), None), judged(find, names_of_half(1), None)
    every = len(plain.surprise) // SHOWN
    thresholds = np.quantile(chosen.surprise, [0.99, 0.98])
    print(f"{'':24} {'pictures':>8} {'no face':>8} {'at 1%':>6} {'at 2%':>6} {'shipped':>8} {'factor':>7}")
    for kind in (None, *COVERINGS):
        rows = plain if kind is None else judged(find, names_of_half(1)[::every][:SHOWN], kind)
        rates = [float((rows.surprise > threshold).mean()) for threshold in thresholds]
        print(
            f"{kind or 'ordinary':24} {rows.pictures:8} {1 - len(rows.surprise) / rows.pictures:8.1%}"
            f" {rates[0]:6.1%} {rates[1]:6.1%} {(rows.covered >= 0.2).mean():8.1%} {(1 - rows.covered).mean():7.2f}",
            flush=True,
        )


def expression() -> None:
    """Print mini-Xception's accuracy on covered faces beside the confidence that it states and that the catalog keeps."""
    settings = load_settings()
    find, version = finder(settings), version_for(Role.DESCRIBE, "mini-xception", settings)
    network, template = load_for_inference(version), template_of(version)
    with shared("data/lfw_expressions.csv").open(encoding="utf-8", newline="") as file:
        labels = {row["image"]: row["expression"] for row in csv.DictReader(file)}
    names = [name for name in names_of_half(1) if labels.get(name) in EXPRESSION.classes]
    print(f"{'':24} {'faces':>6} {'right':>6} {'states':>7} {'kept':>6} {'over 0.6: stated':>17} {'kept':>6}")
    for kind in (None, *COVERINGS):
        rng, rows = np.random.default_rng(6), [np.zeros((0, 3))]
        for plain in find.look_through(shared(ARCHIVE), names[:: len(names) // SHOWN]):
            found = drawn(find, plain, kind, rng)
            crops = [find.align(item, [template]).arrays[crop(template)] for item in found]
            if not crops:
                continue
            said = describe_crops(version, network, np.concatenate(crops), frozenset({EXPRESSION.name}), "cpu")
            value, sure = (said[estimate(version.contract, EXPRESSION.name, what)] for what in ("value", "confidence"))
            right = [EXPRESSION.classes[int(v)] == labels[item.photo.key] for v, item in zip(value, found, strict=True)]
            seen = 1 - covered_share(portraits(find, found)).numpy()
            rows.append(np.stack([right, sure, sure * seen], axis=1))
        right, stated, kept = np.concatenate(rows).T
        print(
            f"{kind or 'ordinary':24} {len(right):6} {right.mean():6.2f} {stated.mean():7.2f} {kept.mean():6.2f}"
            f" {(stated > 0.6).mean():17.1%} {(kept > 0.6).mean():6.1%}",
            flush=True,
        )


if __name__ == "__main__":
    {(): measure, ("fit",): fit, ("expression",): expression}[tuple(sys.argv[1:])]()
