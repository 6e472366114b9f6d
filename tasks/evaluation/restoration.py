"""Evaluate restorers: clean faces are made small, blurred, noisy and compressed, restored, and compared with what they were.

Beside every restorer stand 'nothing' (the face as a night would see it) and 'bicubic' (the same, enlarged more smoothly). What
follows, for a version of a restorer, a recognition model and a size of faces, is whether restored faces are embedded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.ray_cluster import device
from infra.settings import Settings
from infra.words import count
from models.alignment import align
from models.quality import sharpness
from models.restoration.degradation import CLASSIC, degrade, draw
from models.similarity import psnr, ssim
from models.template import LandmarkTemplate, Template
from tasks.embed import embed
from tasks.embedding_decision import Decision, SizeDecision
from tasks.evaluation.central_face import Progress, central_faces, template_of
from tasks.evaluation.verification import Pairs, UnusablePairs, best_accuracy_threshold
from tasks.execution.inference import load_for_inference
from tasks.model_version import ModelVersion, load_network
from tasks.photo_faces import (
    BOXES,
    FIDELITY,
    LANDMARKS,
    PORTRAIT,
    RESTORED,
    RESTORED_FACES,
    RESTORED_SHARPNESS,
    TO_RESTORE,
    PhotoFaces,
    crop,
    restored_crop,
)
from tasks.recipe import PORTRAIT_TEMPLATE
from tasks.restore import Restore, judge

SIZES = (8, 12, 16, 24)  # px between the eyes; above, a face is restored only if it is blurred
SEED = 20260
INNER = slice(
    51, 205
)  # rows and columns of the 256 px reference that are compared: the face, which every restorer sees whole
MIN_FACES = 20  # fewer say too little to embed what is invented
ONE_SIDED_95 = 1.645  # standard errors
NOTHING, BICUBIC = "nothing", "bicubic"


@dataclass(frozen=True)
class Row:
    """What one method made of faces whose eyes lie `size` px apart. Means over `faces`; distances to the clean face.

    `identity`: cosine between the embeddings of the restored and of the clean face. `gain`: how much of it the method adds to
    doing nothing as the pipeline would use it, rejected faces being left as they are, with its one-sided 95% lower bound.
    `accuracy` and `separation` (mean cosine of the same person less that of others): against clean pictures, used so, too.
    """

    method: str
    size: int
    faces: int
    accepted: float
    psnr: float
    ssim: float
    perceptual: float
    identity: float
    gain: float
    gain_low: float
    accuracy: float
    separation: float


@dataclass(frozen=True)
class RestorationEvaluation:
    """All rows, what is decided for each restorer by its reference, and a picture: clean, then each method, by size."""

    rows: tuple[Row, ...]
    decisions: dict[str, tuple[SizeDecision, ...]]
    pictures: NDArray[np.uint8]
    legend: str


@dataclass(frozen=True)
class Places:
    """Where faces lie in their crops of PORTRAIT_TEMPLATE, in pixels.

    `boxes` (N, 4) x1, y1, x2, y2: as large as the detection's and upright, as those are; `landmarks` (N, 5, 2).
    """

    boxes: Tensor
    landmarks: Tensor

    @classmethod
    def of(cls, boxes: Tensor, landmarks: Tensor) -> "Places":
        """Carry what was detected in photos into the crops."""
        to_photo = PORTRAIT_TEMPLATE.transforms(boxes, landmarks).double()
        linear, shift = to_photo[:, :, :2], to_photo[:, None, :, 2]
        centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - 0.5  # boxes are told by the edges of pixels
        points = torch.cat([landmarks, centres], dim=1).double() - shift
        points = torch.linalg.solve(linear, points.transpose(1, 2)).transpose(1, 2)
        half = (boxes[:, 2:] - boxes[:, :2]).double() / 2 / torch.linalg.det(linear).sqrt()[:, None]
        centres = points[:, 5] + 0.5
        return cls(torch.cat([centres - half, centres + half], dim=1).float(), points[:, :5].float())

    def take(self, rows: NDArray[np.int64]) -> "Places":
        return Places(self.boxes[rows], self.landmarks[rows])


@dataclass(frozen=True)
class Faces:
    """Faces to degrade, and what they are compared with.

    `clean` (N, 256, 256, 3) uint8 of PORTRAIT_TEMPLATE; `places` in it; `eyes` (N,) px apart in the photo. Pair p
    is of face `probe[p]` and of a clean picture with the embedding `others[p]` (D,).
    """

    clean: Tensor
    places: Places
    eyes: NDArray[np.float32]
    probe: NDArray[np.int64]
    others: NDArray[np.float32]
    same: NDArray[np.bool_]


def evaluate_restoration(
    settings: Settings,
    detector: ModelVersion,
    embedder: ModelVersion,
    perceptual: ModelVersion,
    restorers: Sequence[ModelVersion],
    images: Path,
    pairs: Pairs,
    count: int,
    least_similarity: float | None,
    on_progress: Progress = lambda done, total: None,
) -> RestorationEvaluation:
    """Evaluate on `count` pairs of one person and as many of two, whose first pictures are degraded (seeded) and restored.

    A face is only made smaller than it is: faces whose eyes are closer than a size are left out there.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        UnusablePairs: if there are not enough faces.
    """
    network = load_for_inference(embedder, device())
    faces = find_faces(settings, detector, embedder, network, images, chosen(pairs, count))
    comparer = _Comparer(embedder, network, load_network(perceptual), faces)
    threshold = best_accuracy_threshold(
        comparer.similarities(comparer.clean, np.ones(len(faces.eyes), bool)), faces.same
    )
    workers = {version.reference: Restore(version, template_of(embedder), device()) for version in restorers}
    rows: list[Row] = []
    strips: list[NDArray[np.uint8]] = []
    total = len(SIZES) * (2 + len(workers))
    for size in SIZES:
        there = np.flatnonzero(faces.eyes >= size)
        if len(there) < 2:
            continue
        made = {
            NOTHING: Made(degraded(faces, there, size, "bilinear")),
            BICUBIC: Made(degraded(faces, there, size, "bicubic")),
        }
        for reference, worker in workers.items():
            made[reference] = restored(
                worker, comparer, made[NOTHING].pixels, faces.places.take(there), least_similarity
            )
            on_progress(len(rows) + len(made), total)
        rows += [comparer.row(method, size, there, result, made[NOTHING], threshold) for method, result in made.items()]
        strips.append(torch.cat([faces.clean[there[0]], *(m.pixels[0] for m in made.values())], dim=1).numpy())
    if not rows:
        raise UnusablePairs(f"no face has eyes {min(SIZES)} px apart: these pictures are too small to degrade")
    decisions = {reference: decide([r for r in rows if r.method == reference], rows) for reference in workers}
    legend = (
        " | ".join(["clean", NOTHING, BICUBIC, *workers]) + f"; rows: eyes {', '.join(str(s) for s in SIZES)} px apart"
    )
    return RestorationEvaluation(tuple(rows), decisions, np.concatenate(strips), legend)


def chosen(pairs: Pairs, count: int) -> Pairs:
    """Draw (seeded) `count` pairs of one person, and as many of two people."""
    random = np.random.default_rng(SEED)
    kinds = [random.permutation(np.flatnonzero(pairs.same == same))[:count] for same in (True, False)]
    rows = np.sort(np.concatenate(kinds))
    return Pairs(
        pairs.fold[rows], tuple(pairs.a[row] for row in rows), tuple(pairs.b[row] for row in rows), pairs.same[rows]
    )


def find_faces(
    settings: Settings, detector: ModelVersion, embedder: ModelVersion, network: nn.Module, images: Path, pairs: Pairs
) -> Faces:
    """Find the faces of the pairs; pairs in which one was not found are left out."""
    template = template_of(embedder)
    groups = central_faces(settings, detector, images, sorted({*pairs.a, *pairs.b}), [template])
    found = {face.key: face for faces in groups for face in faces}
    rows = [row for row in range(len(pairs)) if pairs.a[row] in found and pairs.b[row] in found]
    if not {bool(pairs.same[row]) for row in rows} == {True, False}:
        raise UnusablePairs("a face was found in too few of the pairs: both kinds are needed")
    probes = list(dict.fromkeys(pairs.a[row] for row in rows))
    arrays = [found[name].arrays for name in probes]
    photo_landmarks = torch.tensor(np.concatenate([a[LANDMARKS] for a in arrays]))
    boxes = torch.tensor(np.concatenate([a[BOXES] for a in arrays]))
    others = np.concatenate([found[pairs.b[row]].arrays[crop(template)] for row in rows])
    return Faces(
        clean=torch.from_numpy(np.concatenate([a[PORTRAIT] for a in arrays])),
        places=Places.of(boxes, photo_landmarks),
        eyes=(photo_landmarks[:, 0] - photo_landmarks[:, 1]).norm(dim=1).numpy(),
        probe=np.array([probes.index(pairs.a[row]) for row in rows], np.int64),
        others=embed(network, embedder.spec, others, device()),
        same=pairs.same[rows],
    )


@dataclass(frozen=True)
class Made:
    """What a method made of some faces: `pixels` (n, 256, 256, 3) uint8, its view for the recognition model if it makes one of
    its own, and which faces passed the gates.
    """

    pixels: Tensor
    view: NDArray[np.uint8] | None = None
    accepted: NDArray[np.bool_] | None = None


def degraded(faces: Faces, there: NDArray[np.int64], size: int, enlarge: str) -> Tensor:
    """Degrade faces by the classic model, to eyes `size` px apart; the same draws for every way to `enlarge` them again."""
    assert isinstance(PORTRAIT_TEMPLATE, LandmarkTemplate)
    left, right = PORTRAIT_TEMPLATE.points[:2]
    factor = float(np.hypot(right[0] - left[0], right[1] - left[1])) / size
    recipe = replace(CLASSIC, factor=(factor, factor), flip=0.0)
    results = []
    for face in there.tolist():
        degradation = draw(np.random.default_rng([SEED, size, face]), recipe, PORTRAIT_TEMPLATE.size)
        clean = faces.clean[face].permute(2, 0, 1).float() / 255
        results.append((degrade(clean, degradation, enlarge=enlarge) * 255).round().byte().permute(1, 2, 0))
    return torch.stack(results)


def restored(
    worker: Restore, comparer: "_Comparer", pixels: Tensor, places: Places, least_similarity: float | None
) -> Made:
    """Restore degraded faces as every night does, taking the reference crop for the photo that they are in."""
    count, template = len(pixels), worker.restorer.template
    index = torch.arange(count)
    transforms = template.transforms(places.boxes, places.landmarks)
    crops = align(list(pixels), transforms, index, template.size, template.fill)
    arrays = {
        BOXES: places.boxes.numpy(),
        LANDMARKS: places.landmarks.numpy(),
        TO_RESTORE: crops.numpy(),
        RESTORED_FACES: index.numpy(),
    }
    height, width = pixels.shape[1:3]
    [photo] = worker([PhotoFaces(0, "degraded faces", 0, width=width, height=height, arrays=arrays)])
    if photo.failure is not None:
        raise RuntimeError(photo.failure.message)
    view = photo.arrays[restored_crop(worker.embed_template)]
    back = worker.seen_as(PORTRAIT_TEMPLATE, photo, torch.from_numpy(photo.arrays[RESTORED]))
    before, after = comparer.embedded(pixels, places), comparer.embed(view)
    judged = zip(
        photo.arrays[FIDELITY].tolist(),
        sharpness(pixels).tolist(),
        photo.arrays[RESTORED_SHARPNESS].tolist(),
        (before * after).sum(axis=1).tolist(),
        strict=True,
    )
    accepted = np.array([not judge(*values, least_similarity) for values in judged], bool)
    return Made(back, view, accepted)


class _Comparer:
    """Compares what methods made with the clean faces."""

    def __init__(self, embedder: ModelVersion, network: nn.Module, perceptual: nn.Module, faces: Faces) -> None:
        self.embedder, self.network, self.perceptual, self.faces = embedder, network, perceptual, faces
        self.clean = self.embedded(faces.clean, faces.places)

    def embed(self, view: NDArray[np.uint8]) -> NDArray[np.float32]:
        return embed(self.network, self.embedder.spec, view, device())

    def embedded(self, pixels: Tensor, places: Places) -> NDArray[np.float32]:
        """Embed faces (N, 256, 256, 3) of the reference template by their places in it."""
        template: Template = template_of(self.embedder)
        transforms = template.transforms(places.boxes, places.landmarks)
        return self.embed(align(list(pixels), transforms, torch.arange(len(pixels)), template.size).numpy())

    def similarities(self, vectors: NDArray[np.float32], there: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Cosines of the pairs whose probes are `there`; `vectors` (N, D) has a row for every probe."""
        rows = there[self.faces.probe]
        return np.einsum("pd,pd->p", vectors[self.faces.probe[rows]], self.faces.others[rows]).astype(np.float64)

    def row(self, method: str, size: int, there: NDArray[np.int64], made: Made, nothing: Made, threshold: float) -> Row:
        faces, places = self.faces, self.faces.places.take(there)
        plain = self.embedded(nothing.pixels, places)
        vectors = self.embedded(made.pixels, places) if made.view is None else self.embed(made.view)
        accepted = np.ones(len(there), bool) if made.accepted is None else made.accepted
        used = np.where(accepted[:, None], vectors, plain)
        gains = ((used - plain) * self.clean[there]).sum(axis=1)
        every, present = np.zeros_like(self.clean), np.zeros(len(faces.eyes), bool)
        every[there], present[there] = used, True
        similarities, same = self.similarities(every, present), faces.same[present[faces.probe]]
        inner, wanted = (x[:, INNER, INNER].contiguous() for x in (made.pixels, faces.clean[there]))
        return Row(
            method=method,
            size=size,
            faces=len(there),
            accepted=float(accepted.mean()),
            psnr=float(psnr(inner, wanted).mean()),
            ssim=float(ssim(inner, wanted).mean()),
            perceptual=self._perceptual(inner, wanted),
            identity=float((vectors * self.clean[there]).sum(axis=1).mean()),
            gain=float(gains.mean()),
            gain_low=float(gains.mean() - ONE_SIDED_95 * gains.std(ddof=1) / np.sqrt(len(gains))),
            accuracy=float(((similarities >= threshold) == same).mean()),
            separation=float(similarities[same].mean() - similarities[~same].mean())
            if 0 < same.sum() < len(same)
            else 0.0,
        )

    def _perceptual(self, x: Tensor, y: Tensor) -> float:
        def scaled(pixels: Tensor) -> Tensor:
            return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

        with torch.inference_mode():
            parts = [self.perceptual(scaled(a), scaled(b)) for a, b in zip(x.split(8), y.split(8), strict=True)]
        return float(torch.cat(parts).mean())


def decide(own: Sequence[Row], rows: Sequence[Row]) -> tuple[SizeDecision, ...]:
    """May a restorer's faces be embedded? At each size, only if that is clearly better than doing nothing.

    Clearly: the identity gain's lower bound is above 0, and neither accuracy nor separation of pairs falls.
    """
    nothing = {row.size: row for row in rows if row.method == NOTHING}
    measured = [row.size for row in own]
    bounds = [0.0, *(float(np.sqrt(a * b)) for a, b in pairwise(measured)), measured[-1] * 1.5] if own else []
    decisions = []
    for row, (low, high) in zip(own, pairwise(bounds), strict=True):
        plain = nothing[row.size]
        gain = f"gain {row.gain:+.4f}, at least {row.gain_low:+.4f}"
        numbers = f"{gain}; accuracy {row.accuracy:.3f} against {plain.accuracy:.3f}"
        if row.faces < MIN_FACES:
            embed, reason = False, f"{count(row.faces, 'face says', 'faces say')} too little; {MIN_FACES} are needed"
        elif row.gain_low <= 0:
            embed, reason = False, f"no clear gain of identity: {numbers}"
        elif row.accuracy < plain.accuracy or row.separation < plain.separation:
            embed, reason = False, f"pairs are told apart less well: {numbers}"
        else:
            embed, reason = True, numbers
        decisions.append(SizeDecision(low=low, high=high, embed=embed, reason=reason, faces=row.faces))
    return tuple(decisions)


def decision(embedder: ModelVersion, sizes: tuple[SizeDecision, ...], evidence: str) -> Decision:
    """What is kept with a restorer's version; `evidence` is the run in MLflow."""
    return Decision(embedder=embedder.contract, sizes=sizes, evidence=evidence, decided_at=datetime.now(UTC))


def columns(rows: Sequence[Row]) -> dict[str, list[object]]:
    """The rows as a table, by column."""
    plain = [asdict(row) for row in rows]
    return {name: [row[name] for row in plain] for name in plain[0]}
