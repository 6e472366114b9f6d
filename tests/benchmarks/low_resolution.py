"""What adapters for low resolution gain at 16, 24 and 32 px, and what they cost at full size.

    python -m tests.benchmarks.low_resolution labels labels.csv    people of the shared crops who are in no pair of folds 1-5
    visage train recognition ../shared/data/lfw_grey_128.tar --labels labels.csv --lora 16 --holdout 0.5
    python -m tests.benchmarks.low_resolution measure dlib-resnet dlib-resnet-lora

`measure` follows LFW's protocol on folds 1-5. The crop of 128x128 px as it is in the tar, whose true detail is about 112 px and
whose eyes are 47 px apart, is shrunk to N x N px (bicubic, antialiased, rounded to grey levels) and enlarged to 128 again
(bicubic): at N = 16 the eyes are 5.9 px apart. The face is found on the full picture, so that only recognition is compared;
with `--find-degraded` it is found on the enlarged one, as it would be at work. Both pictures of a pair are degraded.
`won` and `lost` are the pairs that a model decides rightly and the first one does not, and the other way round.
"""

import argparse
import csv
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from infra.settings import load_settings
from models.resolution import shrunk
from models.spec import Role
from tasks.detect import Decoded
from tasks.embed import embed
from tasks.evaluation.central_face import GROUP, FaceFinder, read_images, template_of
from tasks.evaluation.verification import Pairs, VerificationReport, evaluate, pair_similarities, read_pairs
from tasks.model_version import ModelVersion, load_network
from tasks.photo_faces import crop
from tasks.recipe import version_for
from tests.reference import shared

SIDES = (16, 24, 32, None)
ARCHIVE, PAIRS = "data/lfw_grey_128.tar", "data/lfw_pairs_folds_1_5.csv"


def identity(name: str) -> str:
    return name.rsplit("_", 1)[0]


def write_labels(path: Path) -> None:
    """Write image,identity for every crop of people who are in no pair."""
    pairs = read_pairs(shared(PAIRS))
    paired = {identity(name) for name in (*pairs.a, *pairs.b)}
    with tarfile.open(shared(ARCHIVE)) as archive:
        names = sorted(name for name in archive.getnames() if identity(name) not in paired)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "identity"])
        writer.writerows((name, identity(name)) for name in names)
    print(
        f"{len(names)} pictures of {len({identity(name) for name in names})} people, none of them among {len(paired)} in pairs"
    )


def degraded(item: Decoded, side: int | None) -> Decoded:
    """The picture shrunk to side x side px and enlarged again."""
    if side is None:
        return item
    pixels = shrunk(torch.from_numpy(item.picture.pixels[None]), [side], ["bicubic"])[0].numpy()
    return replace(item, picture=replace(item.picture, pixels=pixels))


@dataclass
class Judged:
    """A model, and the embeddings that it has made for each side."""

    version: ModelVersion
    embeddings: dict[int | None, dict[str, NDArray[np.float32]]] = field(default_factory=lambda: {s: {} for s in SIDES})

    def __post_init__(self) -> None:
        self.network = load_network(self.version)

    def embed(self, side: int | None, finder: FaceFinder, found: Sequence[Decoded]) -> None:
        template = template_of(self.version)
        crops = np.concatenate([finder.align(item, [template]).arrays[crop(template)] for item in found])
        vectors = embed(self.network, self.version.spec, crops, "cpu")
        self.embeddings[side].update({item.photo.key: vector for item, vector in zip(found, vectors, strict=True)})

    def report(self, side: int | None, pairs: Pairs) -> tuple[VerificationReport, NDArray[np.bool_]]:
        """The report, and which pairs are decided rightly."""
        scores = pair_similarities(pairs, self.embeddings[side])
        report = evaluate(scores, pairs.same, pairs.fold, nan_is_missing_face=True)
        thresholds = {fold.fold: fold.threshold for fold in report.folds}
        decided = scores >= np.array([thresholds[fold] for fold in pairs.fold.tolist()])
        return report, (decided == pairs.same) & np.isfinite(scores)


def measure(references: Sequence[str], find_degraded: bool) -> None:
    """Print every model's accuracy at every side."""
    settings, pairs = load_settings(), read_pairs(shared(PAIRS))
    models = [Judged(version_for(Role.EMBED, reference, settings)) for reference in references]
    finder = FaceFinder(settings, version_for(Role.DETECT, settings.detect_model, settings))
    pictures = read_images(shared(ARCHIVE), sorted({*pairs.a, *pairs.b}))
    while group := list(islice(pictures, GROUP)):
        decoded = [item for name, data in group if (item := finder.decode(name, data)) is not None]
        found = finder.find(decoded)
        for side in SIDES:
            seen = [degraded(item, side) for item in (decoded if find_degraded else found)]
            seen = finder.find(seen) if find_degraded else seen
            for model in models if seen else ():
                model.embed(side, finder, seen)
    print(
        f"{'px':>4} {'model':24} {'accuracy':>17} {'TAR@FAR 1%':>10} {'0.1%':>6} {'no face':>7} {'won':>4} {'lost':>4}"
    )
    for side in SIDES:
        reference = models[0].report(side, pairs)[1]
        for model in models:
            report, right = model.report(side, pairs)
            tars = [point.tar for point in report.operating_points]
            print(
                f"{side or 'full':>4} {model.version.reference:24} {report.accuracy:.4f} ± {report.accuracy_standard_error:.4f}"
                f"   {tars[0]:10.3f} {tars[1]:6.3f} {report.missing_pairs:7}"
                f" {int((right & ~reference).sum()):4} {int((reference & ~right).sum()):4}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("labels").add_argument("path", type=Path)
    measuring = commands.add_parser("measure")
    measuring.add_argument("models", nargs="+", help="NAME, NAME@VERSION or NAME@ALIAS")
    measuring.add_argument("--find-degraded", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "labels":
        write_labels(arguments.path)
    else:
        measure(arguments.models, arguments.find_degraded)


if __name__ == "__main__":
    main()
