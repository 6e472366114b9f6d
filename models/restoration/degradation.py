"""Degradation models: how a clean face becomes an old, small, blurred, noisy one, for training and for evaluation.

CLASSIC is RestoreFormer's (arXiv:2201.06374, eq. 6: blur, downsample, noise, JPEG, back to size), which GFP-GAN uses as well;
EXTENDED is RestoreFormer++'s (arXiv:2308.07228, "extended degrading model": shift, haze, uneven degradation, grey added).
Ranges and order are those of the released training code, wzhouxiff/RestoreFormerPlusPlus.

What happens to a face is drawn first and applied afterwards, so that it can be stored, shown and repeated.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Range = tuple[float, float]

REFERENCE_SIZE = 512  # the crop that lengths in pixels below are meant for; at other sizes they scale with the crop
HALF_KERNEL = (19, 20)  # px
MAX_SHIFT = 32  # px
WINDOW = (128, 256)  # px
HAZE = (0.75, 0.95)
EYE_ENLARGEMENT = 1.4
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Recipe:
    """What degradations are drawn from: ranges (uniform), and the probabilities of what happens to some faces only.

    `sigma`: blur in px of a 512 px crop; `factor`: of downsampling, below 1 it enlarges; `noise`: deviation in grey levels of
    255; `quality`: of the JPEG.
    """

    sigma: Range = (0.1, 10.0)
    factor: Range = (0.8, 8.0)
    noise: Range = (0.0, 20.0)
    quality: Range = (60.0, 100.0)
    flip: float = 0.5
    shift: float = 0.0
    haze: float = 0.0
    uneven: float = 0.0
    grey: float = 0.0


CLASSIC = Recipe()
EXTENDED = Recipe(shift=0.2, haze=0.008, uneven=0.1, grey=0.008)


@dataclass(frozen=True)
class Pass:
    """One way through the chain, in its order: blur, haze, downsampling, noise, JPEG.

    `half_kernel` and the sigmas along the axes of the kernel in px, `rotation` of its first axis in radians from right to
    down; `haze`: what is left of the contrast (1: none); `noise_seed` seeds the noise field.
    """

    half_kernel: int
    sigma: tuple[float, float]
    rotation: float
    haze: float
    factor: float
    noise: float
    noise_seed: int
    quality: float


@dataclass(frozen=True)
class Window:
    """A square of the crop, in px."""

    side: int
    top: int
    left: int


@dataclass(frozen=True)
class Degradation:
    """All that happens to one face.

    `shift`: how far the content moves down and right, in px. With a `window` there are two passes: the first one's result fills
    it, the second one's the rest. Flip, shift and grey belong to the target too (see `target`).
    """

    flip: bool
    shift: tuple[int, int]
    passes: tuple[Pass, ...]
    window: Window | None
    grey: bool

    def __post_init__(self) -> None:
        wanted = 1 if self.window is None else 2
        if len(self.passes) != wanted:
            raise ValueError(
                f"a degradation {'with' if self.window else 'without'} a window has {wanted} passes, not {len(self.passes)}"
            )


def draw(rng: np.random.Generator, recipe: Recipe, size: int = REFERENCE_SIZE) -> Degradation:
    """Draw what will happen to one face of `size` x `size` px; the same state of `rng` gives the same degradation."""
    scale = size / REFERENCE_SIZE
    flip = bool(rng.random() < recipe.flip)
    shift = (0, 0)
    if rng.random() < recipe.shift:
        reach = round(MAX_SHIFT * scale)
        down, right = rng.integers(-reach, reach, size=2, endpoint=True)
        shift = (int(down), int(right))
    window = None
    if rng.random() < recipe.uneven:
        side = int(rng.integers(round(WINDOW[0] * scale), round(WINDOW[1] * scale), endpoint=True))
        top, left = rng.integers(0, size - side, size=2, endpoint=True)
        window = Window(side, int(top), int(left))
    passes = tuple(_draw_pass(rng, recipe, scale) for _ in range(1 if window is None else 2))
    return Degradation(flip, shift, passes, window, grey=bool(rng.random() < recipe.grey))


def _draw_pass(rng: np.random.Generator, recipe: Recipe, scale: float) -> Pass:
    half_kernel = max(1, round(int(rng.integers(*HALF_KERNEL, endpoint=True)) * scale))
    isotropic = rng.random() < 0.5
    first, second = (float(rng.uniform(*recipe.sigma)) * scale for _ in range(2))
    return Pass(
        half_kernel=half_kernel,
        sigma=(first, first if isotropic else second),
        rotation=0.0 if isotropic else float(rng.uniform(-np.pi, np.pi)),
        haze=float(rng.uniform(*HAZE)) if rng.random() < recipe.haze else 1.0,
        factor=float(rng.uniform(*recipe.factor)),
        noise=float(rng.uniform(*recipe.noise)),
        noise_seed=int(rng.integers(2**32)),
        quality=float(rng.uniform(*recipe.quality)),
    )


def target(image: Tensor, degradation: Degradation) -> Tensor:
    """What a restorer should make of `degrade(image, degradation)`: the clean face (3, S, S), moved and grey as it is."""
    _check(image)
    moved = _moved(image, degradation)
    return _grey(moved) if degradation.grey else moved


def degrade(
    image: Tensor, degradation: Degradation, noise: Sequence[Tensor] | None = None, enlarge: str = "bilinear"
) -> Tensor:
    """Degrade a clean face (3, S, S), float32 RGB in [0, 1]; returns the same shape, rounded to multiples of 1/255.

    `noise` replaces the seeded noise fields: for every pass standard normal values (3, s, s), s = int(S // factor). `enlarge`:
    how the small picture is brought back to size at the end, "bilinear" (the degradation model's) or "bicubic".

    Raises:
        ValueError: if `image` is no such face.
    """
    _check(image)
    clean = _moved(image, degradation)
    fields = noise or [noise_field(run, image.shape[1]) for run in degradation.passes]
    results = [_run(clean, run, field, enlarge) for run, field in zip(degradation.passes, fields, strict=True)]
    degraded = results[-1]
    if (window := degradation.window) is not None:
        rows, columns = slice(window.top, window.top + window.side), slice(window.left, window.left + window.side)
        degraded[:, rows, columns] = results[0][:, rows, columns]
    if degradation.grey:
        degraded = _grey(degraded)
    return (degraded.clamp(0, 1) * 255).round() / 255


def noise_field(run: Pass, size: int) -> Tensor:
    """The standard normal values (3, s, s) that `run` adds to the downsampled face of a crop of `size` px."""
    side = _side(run, size)
    return torch.from_numpy(np.random.default_rng(run.noise_seed).standard_normal((3, side, side), dtype=np.float32))


def component_boxes(components: Tensor, degradation: Degradation, size: int = REFERENCE_SIZE) -> Tensor:
    """Where left eye, right eye and mouth lie in the degraded face: boxes (3, 4) x1, y1, x2, y2 in px.

    `components` (3, 3): x, y and half side of each in the clean face. Eyes are enlarged by 1.4; sides are as in the image. For
    the component discriminators (RestoreFormer, Section 3.3).
    """
    x, y, half = components.unbind(dim=1)
    half = half * torch.tensor([EYE_ENLARGEMENT, EYE_ENLARGEMENT, 1.0])
    if degradation.flip:
        x = size - x
        x, y, half = (values[[1, 0, 2]] for values in (x, y, half))
    down, right = degradation.shift
    x, y = x + right, y + down
    return torch.stack([x - half + 1, y - half + 1, x + half, y + half], dim=1)


def gaussian_kernel(half: int, sigma: tuple[float, float], rotation: float) -> Tensor:
    """Gaussian sampled at whole pixels, (2 half + 1)^2 float64, of sum 1; rotated from right (x) towards down (y)."""
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    cosine, sine = np.cos(rotation), np.sin(rotation)
    along, across = cosine * x + sine * y, cosine * y - sine * x
    kernel = torch.exp(-0.5 * ((along / sigma[0]) ** 2 + (across / sigma[1]) ** 2))
    return kernel / kernel.sum()


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter (3, S, S) with a point-symmetric kernel (k, k), mirrored at the border without repeating the edge."""
    reach, size = kernel.shape[0] // 2, image.shape[-1]
    padded = F.pad(image[None], (reach,) * 4, mode="reflect")[0]
    extent = padded.shape[-2:]  # the wrap-around of a transform of this size stays outside of what is kept
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(image), s=extent)
    return torch.fft.irfft2(spectrum, s=extent)[:, 2 * reach : 2 * reach + size, 2 * reach : 2 * reach + size]


def resize(image: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Without antialiasing: downsampling aliases, as in the training code."""
    return F.interpolate(image[None], (side, side), mode=mode, align_corners=False)[0]


def compress(image: Tensor, quality: float) -> Tensor:
    """Through JPEG with halved chroma; the fraction of `quality` is dropped."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(quality), subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1).float() / 255


def _side(run: Pass, size: int) -> int:
    return max(1, int(size // run.factor))


def _run(image: Tensor, run: Pass, field: Tensor, enlarge: str) -> Tensor:
    size = image.shape[-1]
    x = blur(image, gaussian_kernel(run.half_kernel, run.sigma, run.rotation))
    x = x * run.haze + (1 - run.haze)
    x = resize(x, _side(run, size))
    x = (x + field * (run.noise / 255)).clamp(0, 1)
    return resize(compress(x, run.quality), size, enlarge)


def _moved(image: Tensor, degradation: Degradation) -> Tensor:
    if degradation.flip:
        image = image.flip(2)
    down, right = degradation.shift
    return image[:, _mirrored(image.shape[1], down)][:, :, _mirrored(image.shape[2], right)]


def _mirrored(size: int, shift: int) -> Tensor:
    """Source index of every position after a shift; beyond the border it runs back, the edge pixel repeated."""
    index = torch.arange(size) - shift
    return torch.where(index < 0, -1 - index, torch.where(index >= size, 2 * size - 1 - index, index))


def _grey(image: Tensor) -> Tensor:
    luma = (image * torch.tensor(LUMA)[:, None, None]).sum(dim=0, keepdim=True)
    return luma.expand(3, -1, -1).clone()


def _check(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2] or not image.is_floating_point():
        raise ValueError(f"a face to degrade is a float tensor (3, S, S), not {image.dtype} {tuple(image.shape)}")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"a face to degrade has values in [0, 1], not {image.min():g} .. {image.max():g}")
