"""Greedy non-maximum suppression for many groups of boxes at once, on any device."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Pairs of boxes compared at once: bounds memory (about 100 bytes a pair) when a photo full of texture gives many boxes.
PAIRS_AT_ONCE = 1 << 20


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Overlap of boxes a and b, both (P, 4): intersection / union, in 0..1."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(dim=1)
    return both / ((a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - both)


def intersection_over_smaller(a: Tensor, b: Tensor) -> Tensor:
    """Overlap of boxes a and b, both (P, 4): intersection / area of the smaller, with corners as inclusive pixels."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2]) + 1).clamp_min(0).prod(dim=1)
    return both / torch.minimum((a[:, 2:] - a[:, :2] + 1).prod(dim=1), (b[:, 2:] - b[:, :2] + 1).prod(dim=1))


def suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    threshold: float,
    overlap: Callable[[Tensor, Tensor], Tensor] = intersection_over_union,
) -> Tensor:
    """Return the indices of the boxes that survive, by group and then by falling score.

    Within a group, a box goes when a surviving box of higher score (on a tie: of lower index) overlaps it by more than
    `threshold`. Boxes (N, 4) are x1, y1, x2, y2; scores (N,); groups (N,) are integers from 0.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]
    boxes, groups = boxes[order], groups[order]
    stronger, weaker = [], []
    for i, j in _neighbours(boxes, groups):
        high, low = torch.minimum(i, j), torch.maximum(i, j)
        too_close = overlap(boxes[high], boxes[low]) > threshold
        stronger.append(high[too_close])
        weaker.append(low[too_close])
    return order[_survivors(len(boxes), torch.cat(stronger), torch.cat(weaker))] if stronger else order


def _neighbours(boxes: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield index pairs (each pair once) that cover all boxes of one group whose horizontal extents touch.

    A sweep over x: sorted by left edge, the partners of a box are the run of boxes that start before it ends. Groups lie
    side by side on the axis, so that no pair crosses them.
    """
    if not len(boxes):
        return
    left, right = boxes[:, 0].double(), boxes[:, 2].double() + 1
    shift = groups * (right.max() - left.min() + 1)
    by_left = torch.argsort(left + shift)
    left, right = (left + shift)[by_left], (right + shift)[by_left]
    position = torch.arange(len(boxes), device=boxes.device)
    partners = (torch.searchsorted(left, right) - position - 1).clamp_min(0)
    chunks = torch.unique_consecutive(partners.cumsum(0) // PAIRS_AT_ONCE, return_counts=True)[1].tolist()
    for start, count in zip(position.split(chunks), partners.split(chunks), strict=True):
        first = torch.repeat_interleave(start, count)
        run_start = torch.repeat_interleave(count.cumsum(0) - count, count)
        second = first + 1 + torch.arange(len(first), device=boxes.device) - run_start
        yield by_left[first], by_left[second]


def _survivors(count: int, stronger: Tensor, weaker: Tensor) -> Tensor:
    """Solve keep[i] = no kept box suppresses i. Each round settles one more link of the longest chain of suppressions."""
    keep = torch.ones(count, dtype=torch.bool, device=stronger.device)
    while True:
        settled = torch.ones_like(keep)
        settled[weaker[keep[stronger]]] = False
        if torch.equal(settled, keep):
            return keep
        keep = settled
