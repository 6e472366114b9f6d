"""FaceNet's triplet loss.

Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015 (arXiv:1503.03832): Section 3.1 the loss, Section 3.2 the choice of
triplets. As in github.com/davidsandberg/facenet, every pair of one person meets one negative
at random.
"""

import torch
from torch import Tensor, nn

MARGIN = 0.2  # alpha, on squared distances of unit embeddings


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale embeddings (N, D) to length 1; those of (nearly) no length stay short."""
    return embeddings / embeddings.square().sum(dim=1, keepdim=True).clamp_min(1e-10).sqrt()


def squared_distances(embeddings: Tensor) -> Tensor:
    """Return the squared Euclidean distances (N, N) between embeddings (N, D)."""
    norms = embeddings.square().sum(dim=1)
    return (norms[:, None] + norms[None, :] - 2 * embeddings @ embeddings.T).clamp_min(0)


def positive_pairs(labels: Tensor) -> Tensor:
    """Return every pair (P, 2) of different faces of one person, anchor before positive, for labels (N,)."""
    same = labels[:, None] == labels[None, :]
    return same.triu(diagonal=1).nonzero()


def negative_candidates(
    distances: Tensor, labels: Tensor, pairs: Tensor, margin: float = MARGIN, semi_hard: bool = True
) -> Tensor:
    """Tell for each pair which faces (P, N) are others that violate the margin, given squared distances (N, N).

    `semi_hard` keeps those that are farther from the anchor than the positive is (Section 3.2); without it, closer ones count
    too, which is what the TensorFlow code ships with.
    """
    anchors, positives = pairs.unbind(dim=1)
    excess = distances[anchors] - distances[anchors, positives][:, None]
    candidates = (labels[anchors][:, None] != labels[None, :]) & (excess < margin)
    return candidates & (excess > 0) if semi_hard else candidates


def drawn_triplets(pairs: Tensor, candidates: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Give each pair one of its candidates, all equally likely: (T, 3) anchor, positive, negative; pairs without any go."""
    able = candidates.any(dim=1)
    if not able.any():
        return pairs.new_empty(0, 3)
    negatives = torch.multinomial(candidates[able].float(), 1, generator=generator)
    return torch.cat([pairs[able], negatives], dim=1)


def triplet_loss(embeddings: Tensor, triplets: Tensor, margin: float = MARGIN) -> Tensor:
    """Return mean(max(d(anchor, positive) - d(anchor, negative) + margin, 0)) of squared distances (Section 3.1).

    `embeddings` (N, D) of length 1, `triplets` (T, 3) indices into them. Without triplets the loss is 0, with gradient 0.
    """
    anchors, positives, negatives = embeddings[triplets].unbind(dim=1)
    closer = (anchors - positives).square().sum(dim=1) - (anchors - negatives).square().sum(dim=1)
    return (closer + margin).relu().sum() / max(len(triplets), 1)


class TripletLoss(nn.Module):
    """Triplet loss with random negatives among the semi-hard ones, or among all that violate the margin.

    Called with embeddings (N, D) of any length and labels (N,), it gives a mean over triplets (). Memory: one byte for each
    pair of one person times each face of the batch, and four while drawing.
    """

    def __init__(
        self, margin: float = MARGIN, semi_hard: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.margin, self.semi_hard, self.generator = margin, semi_hard, generator

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        unit = unit_length(embeddings)
        pairs = positive_pairs(labels)
        candidates = negative_candidates(squared_distances(unit.detach()), labels, pairs, self.margin, self.semi_hard)
        return triplet_loss(unit, drawn_triplets(pairs, candidates, self.generator), self.margin)
