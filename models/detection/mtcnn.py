"""MTCNN: face boxes and five landmarks from a cascade of three small networks.

Zhang, Zhang, Li, Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", IEEE Signal
Processing Letters 2016 (arXiv:1604.02878). Weights: facenet-pytorch (MIT), converted from the authors' Caffe models.
P-Net scans an image pyramid, R-Net refines its candidates, O-Net decides and places the landmarks (Section II-A).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load
from models.constant import constant
from models.detection.area import PaddedPhotos, runs
from models.detection.nms import intersection_over_smaller, suppress
from models.detection.pyramid import FIELD, STRIDE, Tile, gather, plan
from models.spec import BundledWeights, CheckpointMismatch, ModelSpec, Role, StateDict, Wheel, WheelFile

GREY = 127  # what surrounds a padded photo: in the middle of the networks' input range, so it holds no edge of its own

# Pixels per call of P-Net and windows per call of R-Net and O-Net. On a CPU the activations should stay in the cache
# (1024 x 1024 at once is 2.7 times slower per pixel than 512 x 512); a GPU wants as few calls as memory allows.
CPU_CALL, GPU_CALL = (1 << 18, 64), (1 << 24, 2048)


@dataclass(frozen=True)
class CascadeSettings:
    """How the cascade searches.

    `min_face_size`: side of the smallest face sought, photo pixels. `thresholds`: least face probability after P-Net, R-Net
    and O-Net. `factor`: from one level of the pyramid to the next. `padding`: border of constant grey that the photo gets
    on every side, as a share of its short side; with it, faces cut by the photo's edge keep true landmarks.
    """

    min_face_size: float = 20
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    factor: float = 0.709
    padding: float = 0.0

    def __post_init__(self) -> None:
        # Below 12 the pyramid would enlarge the photo.
        if not self.min_face_size >= FIELD:
            raise ValueError(f"min_face_size is {self.min_face_size}; the smallest possible is {FIELD} pixels")
        if len(self.thresholds) != 3 or not all(0 <= t <= 1 for t in self.thresholds):
            raise ValueError(f"thresholds are {self.thresholds}; three probabilities in 0..1 are needed")
        if not 0 < self.factor < 1:
            raise ValueError(
                f"factor is {self.factor}; each pyramid level must be smaller than the last: 0 < factor < 1"
            )
        if not 0 <= self.padding <= 1:
            raise ValueError(f"padding is {self.padding}; it is a share of the photo's short side, 0..1")


PUBLISHED = CascadeSettings()
# On the reference photos the only false detection has 0.705 and the weakest face 0.873. Without padding, a face cut by the
# border had its eyes 154 px apart instead of 102.
PRODUCTION = CascadeSettings(thresholds=(0.6, 0.7, 0.85), padding=0.25)


@dataclass(frozen=True)
class Detections:
    """The n faces of one photo, largest box first, on the CPU.

    `boxes` (n, 4) float32 x1, y1, x2, y2 in photo pixels; they may leave the photo. `scores` (n,) float32 face probability.
    `landmarks` (n, 5, 2) float32 x, y: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner.
    """

    boxes: Tensor
    scores: Tensor
    landmarks: Tensor

    def __len__(self) -> int:
        return len(self.scores)


class PReLU(nn.PReLU):
    """Parametric ReLU, one slope per channel, for activations in channels-last order.

    A row of pixels is taken as one long channel axis, with the slopes repeated: 7 times faster on a CPU than the broadcast.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return F.prelu(x, self.weight)
        n, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n * h, w * c)
        return F.prelu(rows, self.weight.repeat(w)).view(n, h, w, c).permute(0, 3, 1, 2)


def _halve(x: Tensor) -> Tensor:
    """2x2 max pooling of stride 2 in ceil mode; 9 times faster than max_pool2d on few channels in channels-last order."""
    for dim in (2, 3):
        pairs = x.shape[dim] // 2
        even, odd = x.narrow(dim, 0, 2 * pairs).unflatten(dim, (pairs, 2)).unbind(dim + 1)
        pooled = torch.maximum(even, odd)
        x = pooled if x.shape[dim] == 2 * pairs else torch.cat([pooled, x.narrow(dim, -1, 1)], dim)
    return x


def _flatten(x: Tensor) -> Tensor:
    """Flatten maps (N, C, H, W) with the column slowest and the channel fastest, the order of the Caffe weights."""
    return x.permute(0, 3, 2, 1).flatten(1)


class PNet(nn.Module):
    """Proposal network (Fig. 2): a face probability and box offsets for every 12x12 window, at steps of 2 pixels.

    Input (N, 3, H, W), RGB, (pixel - 127.5) / 128, sides at least 11. Output: probability (N, h, w), offsets (N, 4, h, w).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = _halve(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(dim=1)[:, 1], self.conv4_2(x)


class RNet(nn.Module):
    """Refinement network (Fig. 2). Input (N, 3, 24, 24) as P-Net's. Output: probability (N,), box offsets (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu4(self.dense4(_flatten(self.prelu3(self.conv3(x)))))
        return self.dense5_1(x).softmax(dim=1)[:, 1], self.dense5_2(x)


class ONet(nn.Module):
    """Output network (Fig. 2). Input (N, 3, 48, 48) as P-Net's.

    Output: probability (N,), box offsets (N, 4), landmarks (N, 10): five x, then five y, as shares of the box.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu5(self.dense5(_flatten(self.prelu4(self.conv4(x)))))
        return self.dense6_1(x).softmax(dim=1)[:, 1], self.dense6_2(x), self.dense6_3(x)


class Candidates(NamedTuple):
    """Boxes of a batch in padded photo pixels, with the photo that each belongs to."""

    photos: Tensor  # (N,) int64
    boxes: Tensor  # (N, 4)
    scores: Tensor  # (N,)

    def at(self, index: Tensor) -> "Candidates":
        return Candidates(self.photos[index], self.boxes[index], self.scores[index])


class MTCNN(nn.Module):
    """The cascade. `detect` takes photos to faces; there is no single forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()

    @torch.no_grad()
    def detect(self, photos: Sequence[Tensor], settings: CascadeSettings = PRODUCTION) -> list[Detections]:
        """Find the faces of every photo. What is found in one does not depend on the others.

        Photos are (H, W, 3) uint8 RGB, of any sizes. Raises ValueError for anything else, naming the photo's position.
        """
        for k, photo in enumerate(photos):
            if photo.dtype != torch.uint8 or photo.dim() != 3 or photo.shape[2] != 3 or not photo.numel():
                raise ValueError(
                    f"photo {k} of the batch is {tuple(photo.shape)} {photo.dtype}; (H, W, 3) torch.uint8 RGB is needed"
                )
        return [face for run in runs(photos) for face in self._detect_group(photos[run], settings)]

    def _detect_group(self, photos: Sequence[Tensor], settings: CascadeSettings) -> list[Detections]:
        padding = [int(min(photo.shape[:2]) * settings.padding) for photo in photos]
        padded = PaddedPhotos(photos, padding, GREY, self.pnet.conv1.weight.device)
        candidates = self._propose(padded, settings)
        candidates = self._refine(padded, candidates, settings.thresholds[1])
        faces, landmarks = self._decide(padded, candidates, settings.thresholds[2])
        areas = (faces.boxes[:, 2:] - faces.boxes[:, :2]).prod(dim=1)
        order = torch.argsort(areas, descending=True, stable=True)
        owners, boxes, scores, landmarks = (t[order].cpu() for t in (*faces, landmarks))
        shift = torch.tensor(padding, dtype=torch.float32)[owners]
        boxes, landmarks = boxes - shift[:, None], landmarks - shift[:, None, None]
        return [Detections(*(t[owners == k] for t in (boxes, scores, landmarks))) for k in range(len(photos))]

    def _propose(self, padded: PaddedPhotos, settings: CascadeSettings) -> Candidates:
        """Scan the pyramids of all photos with P-Net (stage 1)."""
        device = self.pnet.conv1.weight.device
        pixels_per_call, _ = _call_sizes(device)
        tiles = plan(padded, settings.min_face_size, settings.factor, pixels_per_call)
        if not tiles:
            nothing = torch.zeros(0, device=device)
            return Candidates(nothing.long(), nothing.view(0, 4), nothing)
        parts = []
        for call in gather(tiles, pixels_per_call):
            levels = [
                padded.resized([tile.photo for tile in alike], size, rows, columns)
                for (_, _, size, rows, columns), alike in groupby((tiles[k] for k in call), partial(_look, padded))
            ]
            probability, offsets = self.pnet(_network_input(torch.cat(levels)))
            item, row, column = (probability >= settings.thresholds[0]).nonzero().unbind(dim=1)
            ordinals = constant(call, device)[item]
            parts.append((ordinals, row, column, probability[item, row, column], offsets[item, :, row, column]))
        ordinal, row, column, scores, offsets = (torch.cat(part) for part in zip(*parts, strict=True))
        # Row by row within a level, as if it had been scanned alone: equal scores then fall the same way in any batch.
        order = torch.argsort(ordinal, stable=True)
        ordinal, row, column, scores, offsets = (t[order] for t in (ordinal, row, column, scores, offsets))
        table = constant([(t.photo, t.level, t.columns.start, t.rows.start) for t in tiles], device)[ordinal]
        corner = table[:, 2:] + STRIDE * torch.stack([column, row], dim=1)
        # Float32 and true division as in the published code: their rounding decides on which side of a pixel floor falls.
        scale = constant([t.scale for t in tiles], device)[ordinal, None]
        boxes = torch.cat([((corner + 1) / scale).floor(), ((corner + FIELD) / scale).floor()], dim=1)
        found = Candidates(table[:, 0], boxes, scores)
        kept = suppress(found.boxes, found.scores, table[:, 1], 0.5)
        kept = kept[suppress(found.boxes[kept], found.scores[kept], found.photos[kept], 0.7)]
        found = found.at(kept)
        return found._replace(boxes=_square(_regress(found.boxes, offsets[kept], 0)))

    def _refine(self, padded: PaddedPhotos, candidates: Candidates, threshold: float) -> Candidates:
        """Look closer with R-Net and tighten the boxes (stage 2)."""
        candidates, (scores, offsets) = self._examine(self.rnet, 24, padded, candidates)
        candidates = candidates._replace(scores=scores)
        (kept,) = (scores > threshold).nonzero(as_tuple=True)
        kept = kept[suppress(candidates.boxes[kept], scores[kept], candidates.photos[kept], 0.7)]
        candidates = candidates.at(kept)
        return candidates._replace(boxes=_square(_regress(candidates.boxes, offsets[kept], 1)))

    def _decide(self, padded: PaddedPhotos, candidates: Candidates, threshold: float) -> tuple[Candidates, Tensor]:
        """Decide with O-Net what is a face, and place its landmarks (stage 3). Landmarks (N, 5, 2)."""
        candidates, (scores, offsets, shares) = self._examine(self.onet, 48, padded, candidates)
        corner, extent = candidates.boxes[:, None, :2], (candidates.boxes[:, 2:] - candidates.boxes[:, :2] + 1)[:, None]
        landmarks = shares.view(-1, 2, 5).transpose(1, 2) * extent + corner - 1
        faces = candidates._replace(boxes=_regress(candidates.boxes, offsets, 1), scores=scores)
        (kept,) = (scores > threshold).nonzero(as_tuple=True)
        kept = kept[suppress(faces.boxes[kept], scores[kept], faces.photos[kept], 0.7, intersection_over_smaller)]
        return faces.at(kept), landmarks[kept]

    def _examine(
        self, network: nn.Module, size: int, padded: PaddedPhotos, candidates: Candidates
    ) -> tuple[Candidates, list[Tensor]]:
        """Run `network` on the candidates' windows; those that lie wholly outside their photo are dropped."""
        low, high = candidates.boxes.trunc().long().split(2, dim=1)
        low, high = low.clamp_min(1) - 1, torch.minimum(high, padded.extents[candidates.photos])
        (kept,) = (low < high).all(dim=1).nonzero(as_tuple=True)
        candidates, windows = candidates.at(kept), torch.cat([low, high], dim=1)[kept]
        _, count = _call_sizes(windows.device)
        outputs = [
            network(_network_input(padded.windows(photos, boxes, size)))
            for photos, boxes in zip(candidates.photos.split(count), windows.split(count), strict=True)
        ]
        return candidates, [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def _look(padded: PaddedPhotos, tile: Tile) -> tuple[tuple[int, int], int, tuple[int, int], range, range]:
    """What two tiles have in common that are cut from their photos in the same way: sizes, border, and place."""
    return padded.sizes[tile.photo], padded.padding[tile.photo], tile.size, tile.rows, tile.columns


def _call_sizes(device: torch.device) -> tuple[int, int]:
    return CPU_CALL if device.type == "cpu" else GPU_CALL


def _network_input(pixels: Tensor) -> Tensor:
    """Turn (N, H, W, 3) in 0..255 into the networks' (N, 3, H, W), in channels-last order without a copy."""
    return pixels.sub_(127.5).mul_(0.0078125).permute(0, 3, 1, 2)


def _regress(boxes: Tensor, offsets: Tensor, inclusive: int) -> Tensor:
    """Move the corners by `offsets`, in units of the box's sides (plus 1 where corners are taken as `inclusive` pixels)."""
    sides = boxes[:, 2:] - boxes[:, :2] + inclusive
    return boxes + offsets * sides.repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    """Lengthen the shorter side about the centre."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.amax(dim=1, keepdim=True)
    corner = boxes[:, :2] + sides / 2 - longest / 2
    return torch.cat([corner, corner + longest], dim=1)


def build(state_dict: StateDict) -> MTCNN:
    """Build the cascade; keys are `pnet.*`, `rnet.*`, `onet.*`.

    Raises CheckpointMismatch, naming the keys, for other weights.
    """
    return load(MTCNN(), state_dict, "MTCNN")


def _read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    state_dict: dict[str, Tensor] = {}
    for path, file in files.items():
        weights = torch.load(file, map_location="cpu", weights_only=True)
        state_dict |= {f"{Path(path).stem}.{key}": value.contiguous() for key, value in weights.items()}
    if state_dict.keys() != MTCNN().state_dict().keys():
        raise CheckpointMismatch(f"{', '.join(map(str, files.values()))}: these are not MTCNN's three networks.")
    return state_dict


MTCNN_SPEC = ModelSpec(
    name="mtcnn",
    role=Role.DETECT,
    title="MTCNN: face boxes and five landmarks",
    licence="MIT",
    source="https://github.com/timesler/facenet-pytorch",
    paper="arXiv:1604.02878",
    build=build,
    settings=repr(PRODUCTION),
    bundled=BundledWeights(
        wheel=Wheel(
            package="facenet-pytorch",
            version="2.6.0",
            filename="facenet_pytorch-2.6.0-py3-none-any.whl",
            size=1_881_930,
            sha256="ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
        ),
        files=(
            WheelFile(
                "facenet_pytorch/data/pnet.pt",
                28_570,
                "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
            ),
            WheelFile(
                "facenet_pytorch/data/rnet.pt",
                403_147,
                "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
            ),
            WheelFile(
                "facenet_pytorch/data/onet.pt",
                1_559_269,
                "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
            ),
        ),
        read=_read,
    ),
    notes="Trained on WIDER FACE and CelebA, whose own terms are for research.",
)
