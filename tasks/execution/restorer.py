"""One interface for every restorer: aligned crops in, restored crops out, in batches.

Which view of a face a restorer wants, at which size, and what it wants beside the pixels, its entry in the model table says.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.constant import constant
from models.spec import ModelSpec
from models.template import Template
from tasks.execution.inference import bfloat16_parts, load_for_inference
from tasks.model_version import ModelVersion

BATCH = 4  # restoration networks hold hundreds of full-size feature maps
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Restored:
    """Restored crops: `pixels` (N, S * scale, S * scale, 3) uint8 on the restorer's device, and which of them `repeated` (N,)
    bool says had to be made again in float32, because half precision had overflowed.
    """

    pixels: Tensor
    repeated: np.ndarray


class Restorer:
    """Restore aligned crops with one model version. On a GPU it computes in half precision, unless `half` or the
    version says otherwise, or parts of it compute in bfloat16.
    """

    def __init__(self, version: ModelVersion, device: str, half: bool | None = None) -> None:
        assert version.spec.preprocess is not None
        self.version, self.spec, self.device = version, version.spec, device
        self.template: Template = version.spec.preprocess.template
        self.network: nn.Module = load_for_inference(version, device)
        on_gpu = torch.device(device).type == "cuda"
        plain = version.precision == "auto" and not bfloat16_parts(version, device)
        self.half = on_gpu and plain if half is None else half

    def __call__(self, crops: Tensor, landmarks: Tensor) -> Restored:
        """Restore crops (N, S, S, 3) uint8 of the template, in which the five landmarks (N, 5, 2) lie as they say.

        A grey crop stays grey: one without colour but for that of the template's fill.

        Raises:
            FloatingPointError: if the network's output is not finite even in float32: nothing is passed off as restored.
        """
        parts, repeated = [], []
        guides = None if self.spec.guide is None else self.spec.guide(landmarks.float())
        for start in range(0, len(crops), BATCH):
            batch = crops[start : start + BATCH].to(self.device)
            guide = None if guides is None else guides[start : start + BATCH].to(self.device)
            pixels, again = self._restore(batch, guide)
            parts.append(pixels)
            repeated.append(again)
        size = self.template.size * self.spec.scale
        empty = torch.zeros(0, size, size, 3, dtype=torch.uint8, device=self.device)
        return Restored(torch.cat([empty, *parts]), np.concatenate([np.zeros(0, bool), *repeated]))

    def _restore(self, crops: Tensor, guide: Tensor | None) -> tuple[Tensor, np.ndarray]:
        output = forward(self.network, self.spec, crops, guide, self.half)
        overflowed = ~torch.isfinite(output).flatten(1).all(dim=1)
        if self.half and bool(overflowed.any()):
            rest = None if guide is None else guide[overflowed]
            output[overflowed] = forward(self.network, self.spec, crops[overflowed], rest, half=False)
        if not bool(torch.isfinite(output).all()):
            raise FloatingPointError(f"{self.spec.name} gave values that are not finite")
        pixels = to_pixels(output, self.spec)
        tint = constant([value - min(self.template.fill) for value in self.template.fill], crops.device)
        grey = (crops - crops.amin(dim=3, keepdim=True) <= tint).flatten(1).all(dim=1)
        if bool(grey.any()):
            luma = (pixels[grey].float() @ constant(LUMA, pixels.device)).round().byte()
            pixels[grey] = luma[..., None].expand(-1, -1, -1, 3)
        return pixels, (overflowed.cpu().numpy() if self.half else np.zeros(len(crops), bool))


def forward(network: nn.Module, spec: ModelSpec, crops: Tensor, guide: Tensor | None, half: bool) -> Tensor:
    """A restorer's plain forward: crops (N, S, S, 3) uint8 to its output (N, 3, S * scale, S * scale) float32.

    `guide` is what `spec.guide` makes; `half` computes in float16 where that is safe by the rules of torch's autocast.
    """
    assert spec.preprocess is not None
    with torch.inference_mode(), torch.autocast(crops.device.type, torch.float16, enabled=half):
        faces = spec.preprocess(crops)
        output: Tensor = (network(faces) if guide is None else network(faces, guide)).float()
    return output.clone()


def to_pixels(output: Tensor, spec: ModelSpec) -> Tensor:
    """Undo the preprocessing: a network's finite output (N, 3, H, W) to pixels (N, H, W, 3) uint8."""
    assert spec.preprocess is not None
    mean, std = (constant(v, output.device)[:, None, None] for v in (spec.preprocess.mean, spec.preprocess.std))
    return (output * std + mean).clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous()
