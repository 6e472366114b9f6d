"""How well coverings before a face are noticed, and how often an ordinary face is taken for covered.

    python -m tests.benchmarks.covered fit        make models/covered.safetensors from one half of LFW's people
    python -m tests.benchmarks.covered            judge on the other half

Coverings are drawn (tests/coverings.py) on the pictures of `lfw_grey_128.tar`, stored as JPEG, and go the whole way: a face that
the detector no longer finds has no row to be wrong in, and is counted apart. Thresholds come from the half of `fit`. `factor` is the
mean of what confidences are multiplied by.
"""

import sys
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

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
from tasks.detect import Decoded
from tasks.evaluation import GROUP, FaceFinder, read_images
from tasks.photo_faces import LANDMARKS, PORTRAIT
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
    pictures = read_images(shared(ARCHIVE), names_of_half(0))
    while group := list(islice(pictures, GROUP)):
        crops = portraits(find, find(group))
        parts += [descriptors(crops), descriptors(crops.flip(2))]
    values: dict[str, Tensor] = {}
    for name in AREAS:
        ordinary = torch.cat([part[name] for part in parts])
        mean, covariance = ordinary.mean(dim=0), ordinary.T.cov()
        covariance += REGULARISATION * covariance.trace() / len(mean) * torch.eye(len(mean))
        whitening = torch.linalg.cholesky(torch.linalg.inv(covariance)).half().float()
        typical = [F.normalize(mean @ whitening, dim=0)]
        if name == "mouth":  # a cloth's pattern is as strong as the mean, but the same everywhere: ask for what is not
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


def judged(find: FaceFinder, names: Sequence[str], kind: str | None) -> Judged:
    """Look at pictures, with a covering drawn where the face was found without it."""
    rng, pictures = np.random.default_rng(6), read_images(shared(ARCHIVE), names)
    surprises, shares, count = [np.zeros(0)], [np.zeros(0)], 0
    while group := list(islice(pictures, GROUP)):
        found = find(group)
        if kind is not None:
            drawn = [
                cover(item.picture.pixels, item.photo.arrays[LANDMARKS][0], kind, rng) for item in found
            ]
            found = find([(item.photo.key, jpeg(pixels)) for item, pixels in zip(found, drawn, strict=True)])
            count += len(drawn)
        else:
            count += len(found)
        crops = portraits(find, found)
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


if __name__ == "__main__":
    fit() if sys.argv[1:] == ["fit"] else measure()
