"""Boxes of faces in a photo."""

import numpy as np


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M), 0..1, of boxes (N, 4) and (M, 4): x1, y1, x2, y2 in pixels."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    found: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared, dtype=np.float64), where=union > 0)
    return found
