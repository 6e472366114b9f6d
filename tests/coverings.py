"""What may lie before a face, drawn on photographs: masks, hands, scarves, sunglasses, bars. No photograph is copied.

Everything is drawn in the face's own coordinates: the middle between the eyes is (0, 0), the eyes are 1 apart, y points to the
chin. There the nose's tip lies at (0, 0.6), the mouth at y = 1.05, the chin near y = 1.75; the cheeks end near x = -0.95, 0.95.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tests.portraits import Pixels

Map = NDArray[np.float64]
Layer = tuple[Map, Map]  # how far each pixel is covered (H, W) 0..1, and by what color (H, W, 3) 0..255
Drawing = Callable[[Map, Map, Map, np.random.Generator], Layer]

CLOTH = (
    (150, 195, 225),
    (245, 245, 245),
    (25, 25, 30),
    (120, 175, 140),
    (225, 170, 185),
    (60, 70, 120),
    (150, 145, 140),
)
EDGE = 0.03  # eye distances over which a covering's edge fades
BLUR = 0.015  # eye distances: as sharp as the faces of LFW are


def cover(picture: Pixels, landmarks: Map, kind: str, rng: np.random.Generator) -> Pixels:
    """Draw a covering of this kind before the face whose five landmarks (5, 2) lie there in pixels of the picture (H, W, 3)."""
    left, right = landmarks[0].astype(float), landmarks[1].astype(float)
    middle, along = (left + right) / 2, right - left
    scale = float(np.hypot(*along))
    along /= scale
    down = np.array([-along[1], along[0]])
    mouth = (landmarks[3] + landmarks[4]) / 2 - middle
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(float)
    u, v = (((x - middle[0]) * axis[0] + (y - middle[1]) * axis[1]) / scale for axis in (along, down))
    u = u - v * float(mouth @ along) / max(
        float(mouth @ down), 0.5 * scale
    )  # a head that is turned carries it to one side
    v = v * 1.05 / np.clip(float(mouth @ down) / scale, 0.7, 1.4)
    face = picture[np.hypot(u / 0.8, (v - 0.3) / 0.9) < 1].astype(float)
    alpha, color = COVERINGS[kind](u, v, face, rng)
    light = np.clip(np.percentile(face.mean(axis=1), 75) / 170, 0.5, 1.15)
    color = color * light + rng.normal(0, 4, picture.shape[:2])[..., None]
    alpha, color = gaussian_filter(alpha, BLUR * scale), gaussian_filter(color, (BLUR * scale, BLUR * scale, 0))
    if np.ptp(picture, axis=2).max() == 0:  # a grey photograph stays one
        color = np.repeat((color @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
    return np.clip((1 - alpha[..., None]) * picture + alpha[..., None] * color, 0, 255).round().astype(np.uint8)


def _inside(distance: Map) -> Map:
    """Fade from 1 inside (negative distances, in eye distances) to 0 outside."""
    return np.clip(0.5 - distance / (2 * EDGE), 0, 1)


def _plain(color: Map | tuple[float, ...], shade: Map) -> Map:
    return np.asarray(color, float)[:3] * shade[..., None]


def _mask_outline(u: Map, v: Map, top: float, rng: np.random.Generator) -> Map:
    width = rng.uniform(0.9, 1.02)
    upper = top + rng.uniform(0.0, 0.12) * np.abs(u) ** 1.5 + 0.1 * np.clip(np.abs(u) - 0.3, 0, 1)
    lower = rng.uniform(1.65, 1.9) - 0.55 * (np.abs(u) / width) ** 2.5
    return np.maximum.reduce([upper - v, v - lower, np.abs(u) - width])


def _loops(u: Map, v: Map, outline: Map) -> Map:
    loop = np.abs(np.abs(u) - 0.95 - 0.3 * np.clip(0.55 - v, 0, 1)) - 0.015
    return np.where((v > 0.1) & (v < 0.55) & (outline > 0), _inside(loop), 0)


def _folds(u: Map, v: Map, rng: np.random.Generator) -> Map:
    """Shade of cloth over a nose and a chin: pleats, light from one side, and the nose's ridge."""
    pleats = sum(np.exp(-(((v - at - 0.06 * u**2) / 0.02) ** 2)) for at in 0.75 + np.arange(3) * rng.uniform(0.2, 0.28))
    ridge = 0.12 * np.exp(-((u / 0.2) ** 2)) * np.clip(1.2 - v, 0, 1)
    side = rng.uniform(-0.15, 0.15) * u - 0.25 * np.abs(u) ** 3
    return np.clip(1 - rng.uniform(0.05, 0.25) * pleats + ridge + side - 0.1 * np.clip(v - 1.2, 0, 1), 0.2, 1.2)


def surgical_mask(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    outline = _mask_outline(u, v, rng.uniform(0.2, 0.45), rng)
    color = CLOTH[rng.integers(len(CLOTH))]
    return np.maximum(_inside(outline), _loops(u, v, outline)), _plain(color, _folds(u, v, rng))


def mask_below_the_nose(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    outline = _mask_outline(u, v, rng.uniform(0.7, 0.8), rng)
    return _inside(outline), _plain(CLOTH[rng.integers(len(CLOTH))], _folds(u, v, rng))


def patterned_mask(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    outline = _mask_outline(u, v, rng.uniform(0.2, 0.45), rng)
    period, turn = rng.uniform(0.12, 0.4), rng.uniform(0, np.pi)
    a, b = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    a, b = (2 * np.pi * c / period for c in (a, b))
    waves = (np.sin(a), np.sin(a) * np.sin(b), np.sin(a + 1.5 * np.sin(b)), np.maximum(np.sin(a), np.sin(b)))
    pattern = np.clip(0.5 + 2 * waves[rng.integers(4)], 0, 1)[..., None]
    one, other = (np.array(CLOTH[i], float) for i in rng.choice(len(CLOTH), 2, replace=False))
    return _inside(outline), (pattern * one + (1 - pattern) * other) * _folds(u, v, rng)[..., None]


def scarf(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    upper = rng.uniform(0.45, 0.85) + 0.1 * np.sin(2 * u + rng.uniform(0, 6)) - v
    shade = 0.8 + 0.15 * np.sin(2 * np.pi * (v + 0.3 * np.sin(u + rng.uniform(0, 6))) / rng.uniform(0.25, 0.5))
    shade += 0.06 * np.sin(2 * np.pi * u / 0.08) * np.sin(2 * np.pi * v / 0.08)  # knitted
    return _inside(np.maximum(upper, np.abs(u) - 1.3)), _plain(CLOTH[rng.integers(len(CLOTH))], shade)


def _hand(u: Map, v: Map, face: Map, rng: np.random.Generator, at: tuple[float, float]) -> Layer:
    """Four fingers side by side and the back of a hand, of the face's own color."""
    turn = rng.choice([-1, 1]) * rng.uniform(0.2, 1.5)  # fingers point up and to one side
    x, y = u - at[0], v - at[1]
    across, away = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    width = rng.uniform(0.24, 0.3)
    alpha, shade = np.zeros_like(u), np.zeros_like(u)
    for k in range(4):
        middle, tip = (k - 1.5) * width, -0.75 + 0.12 * abs(k - 1.3)
        beyond = np.clip(tip - away, 0, None)
        inside = np.hypot(across - middle, beyond) - width * 0.5
        finger = _inside(np.where(away > 2.2, 1, inside))
        round_ = np.sqrt(np.clip(1 - ((across - middle) / (0.56 * width)) ** 2, 0.15, 1))
        knuckles = 1 - 0.12 * sum(np.exp(-(((away - tip - at_) / 0.03) ** 2)) for at_ in (0.4, 0.75))
        shade = np.where(finger > alpha, round_ * knuckles, shade)
        alpha = np.maximum(alpha, finger)
    palm = _inside(np.maximum(np.maximum(np.abs(across) - 2 * width, 0.35 - away), away - 2.2))
    back = np.clip(palm - 0.5 * (away < 0.5), 0, 1)
    shade = np.where(back > 0.5, 0.9 + 0.08 * np.cos(2 * np.pi * across / width), shade)
    skin = (
        np.percentile(face, 65, axis=0)
        * rng.uniform(0.85, 1.15)
        / np.clip(np.percentile(face.mean(axis=1), 75) / 170, 0.5, 1.15)
    )
    return np.maximum(alpha, palm), _plain(skin, shade)


def hand_before_the_mouth(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    return _hand(u, v, face, rng, (rng.uniform(-0.1, 0.1), rng.uniform(0.95, 1.15)))


def hand_before_the_eyes(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    return _hand(u, v, face, rng, (rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.15)))


def object_before_the_mouth(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    """A cup, a telephone, a book: a box with rounded corners, or a microphone's ball."""
    color, x = CLOTH[rng.integers(len(CLOTH))], u + rng.uniform(-0.15, 0.15)
    if rng.random() < 0.5:
        half = rng.uniform(0.45, 0.9)
        outline = np.maximum(np.abs(x) - half, rng.uniform(0.65, 0.85) - v)
        return _inside(np.maximum(outline, v - rng.uniform(1.5, 2.5))), _plain(color, 0.75 + 0.35 * (x / half) ** 2)
    radius = rng.uniform(0.45, 0.6)
    ball, stem = np.hypot(x, v - 1.15) - radius, np.maximum(np.abs(x) - 0.2, 1.15 - v)
    mesh = 0.35 + 0.1 * np.sin(2 * np.pi * u / 0.07) * np.sin(2 * np.pi * v / 0.07) + 0.2 * np.exp(-(x**2) * 8)
    return _inside(np.minimum(ball, stem)), _plain((180.0, 180.0, 180.0), mesh)


def sunglasses(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    width, height, power = rng.uniform(0.36, 0.46), rng.uniform(0.26, 0.36), rng.uniform(2, 4)
    lens = ((np.abs(np.abs(u) - 0.5) / width) ** power + (np.abs(v - 0.05) / height) ** power) ** (1 / power) - 1
    bridge, arms = (
        np.maximum(np.abs(v + 0.05) - 0.04, np.abs(u) - 0.2),
        np.maximum(np.abs(v + 0.08) - 0.04, 0.8 - np.abs(u)),
    )
    arms = np.maximum(arms, np.abs(u) - 1.1)
    shine = np.exp(-((((np.abs(u) - 0.5) * 0.7 + v + rng.uniform(-0.1, 0.2)) / 0.06) ** 2)) * rng.choice([0, 0.5, 1])
    shade = 0.12 + rng.uniform(0, 0.3) * np.clip(v + 0.3, 0, 1) + 0.5 * shine
    strength = rng.uniform(0.8, 1)
    return strength * _inside(np.minimum.reduce([lens * 0.3, bridge, arms])), _plain((170.0, 165.0, 160.0), shade)


def bar_over_the_eyes(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    return _inside(np.maximum(np.abs(u) - 1, np.abs(v) - rng.uniform(0.2, 0.35))), _plain(
        (0.0, 0.0, 0.0), np.ones_like(u)
    )


def bar_over_the_mouth(u: Map, v: Map, face: Map, rng: np.random.Generator) -> Layer:
    bar = np.maximum(np.abs(u) - 0.9, np.abs(v - 1.05) - rng.uniform(0.22, 0.35))
    return _inside(bar), _plain((0.0, 0.0, 0.0), np.ones_like(u))


COVERINGS: Mapping[str, Drawing] = {
    drawing.__name__.replace("_", " "): drawing
    for drawing in (
        surgical_mask, mask_below_the_nose, patterned_mask, scarf, hand_before_the_mouth, object_before_the_mouth,
        bar_over_the_mouth, hand_before_the_eyes, sunglasses, bar_over_the_eyes,
    )
}  # fmt: skip
