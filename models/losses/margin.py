"""Margin losses: softmax over the cosines to class centres, made harder for the right class by a margin.

ArcFace: Deng, Guo, Xue, Zafeiriou, CVPR 2019 (arXiv:1801.07698). CosFace: Wang et al., CVPR 2018 (arXiv:1801.09414).
ElasticFace: Boutros, Damer, Kirchbuchner, Kuijper, CVPR Workshops 2022 (arXiv:2109.09416), where every sample of every batch
draws its margin anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 64.0  # s of all four papers

Shift = Callable[[Tensor, Tensor], Tensor]
Margins = Callable[[Tensor], Tensor]


def angular(cosines: Tensor, margins: Tensor) -> Tensor:
    """ArcFace's margin: cos(theta + margin), margins in radians (arXiv:1801.07698, eq. 3). Both (N,).

    Beyond theta + margin = pi the value rises again, as in the released ElasticFace code. Where the sine drowns in rounding
    (cosines of 1 and -1) its derivative, which has no limit, is taken as 0.
    """
    sines = (1 - cosines.square()).clamp_min(torch.finfo(cosines.dtype).eps).sqrt()
    return cosines * margins.cos() - sines * margins.sin()


def additive(cosines: Tensor, margins: Tensor) -> Tensor:
    """CosFace's margin: cos(theta) - margin (arXiv:1801.09414, eq. 4). Both (N,)."""
    return cosines - margins


@dataclass(frozen=True)
class Constant:
    """The same margin for every sample."""

    margin: float

    def __call__(self, cosines: Tensor) -> Tensor:
        return torch.full_like(cosines, self.margin)


@dataclass(frozen=True)
class Elastic:
    """Margins drawn from N(mean, std) (arXiv:2109.09416); with `by_difficulty` assigned as in the + variants."""

    mean: float
    std: float
    by_difficulty: bool = False
    generator: torch.Generator | None = None

    def __call__(self, cosines: Tensor) -> Tensor:
        noise = torch.randn(cosines.shape, generator=self.generator, device=cosines.device, dtype=cosines.dtype)
        drawn = self.mean + self.std * noise
        return assigned_by_difficulty(drawn, cosines) if self.by_difficulty else drawn


def assigned_by_difficulty(drawn: Tensor, cosines: Tensor) -> Tensor:
    """Deal out the drawn margins (N,) as the released ElasticFace+ models were trained.

    Sample i gets sorted(drawn)[order[i]], where order sorts the samples by falling cosine to their class. The paper means the
    smallest margin for the easiest sample, which would take the inverse of `order`; this is what its code does.
    """
    return drawn.sort().values[cosines.argsort(descending=True)]


class MarginSoftmax(nn.Module):
    """Cross-entropy over scaled cosines, the cosine to the right class being moved by a margin.

    Called with embeddings (N, dimension) of any length and labels (N,) int64, it gives the mean loss (). `weight`
    (classes, dimension) holds the class centres; its rows' lengths do not matter either. `margins` gives each sample's margin
    for its cosine to its class, `shift` moves the cosine by it.
    """

    def __init__(self, dimension: int, classes: int, shift: Shift, margins: Margins, scale: float = SCALE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dimension) * 0.01)
        self.shift, self.margins, self.scale = shift, margins, scale

    def logits(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return scaled cosines (N, classes) with the margin in place."""
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight)).clamp(-1, 1)
        target = cosines.gather(1, labels[:, None])[:, 0]
        moved = self.shift(target, self.margins(target.detach()))
        return self.scale * cosines.scatter(1, labels[:, None], moved[:, None].to(cosines.dtype))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(embeddings, labels), labels)


def arcface(dimension: int, classes: int, margin: float = 0.5) -> MarginSoftmax:
    """ArcFace with its paper's margin."""
    return MarginSoftmax(dimension, classes, angular, Constant(margin))


def cosface(dimension: int, classes: int, margin: float = 0.35) -> MarginSoftmax:
    """CosFace with its paper's margin; PETALface was trained with 0.4."""
    return MarginSoftmax(dimension, classes, additive, Constant(margin))


def _elastic(shift: Shift, mean: float, std: float, by_difficulty: bool, dimension: int, classes: int) -> MarginSoftmax:
    return MarginSoftmax(dimension, classes, shift, Elastic(mean, std, by_difficulty))


# ElasticFace with the means and spreads of the authors' training configuration; called with (dimension, classes).
elastic_arcface = partial(_elastic, angular, 0.50, 0.05, False)
elastic_arcface_plus = partial(_elastic, angular, 0.50, 0.0175, True)
elastic_cosface = partial(_elastic, additive, 0.35, 0.05, False)
elastic_cosface_plus = partial(_elastic, additive, 0.35, 0.02, True)
