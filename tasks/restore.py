"""Restore: sharpen the faces that need it. Restored detail is invented, so the result is judged and kept apart.

A restored crop is accepted only if, made small again, it still looks like the input (fidelity), and if it is still the
same person to the recognition model (identity similarity). Neither embedding nor search ever uses restored pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.alignment import align
from models.spec import ModelSpec
from models.template import Template
from tasks.guard import guarded
from tasks.install import ModelVersion, load_network
from tasks.photo_faces import (
    BOXES,
    FIDELITY,
    LANDMARKS,
    RESTORED,
    RESTORED_FACES,
    TO_RESTORE,
    PhotoFaces,
    restored_crop,
)

BATCH = 4  # restoration networks hold hundreds of full-size feature maps
MIN_FIDELITY = 23.0  # dB; under it the restored face no longer shows what the photo shows (seen on shared photographs)


class Restore:
    """Restore the crops that the assess stage selected.

    In: `restored.input` (m, S, S, 3) of the restorer's template, with `restored.faces` (m,). Out: `restored.pixels`
    (m, S * scale, S * scale, 3) uint8, `restored.fidelity` (m,) in dB, and the restored faces as the recognition model
    wants to see them.
    """

    def __init__(self, version: ModelVersion, embed_template: Template, device: str) -> None:
        self.spec = version.spec
        self.embed_template = embed_template
        self.network = load_network(version).to(device)
        self.device = device

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        return guarded("restore", photos, self._restore)

    def _restore(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        needing = [photo for photo in photos if TO_RESTORE in photo.arrays]
        if not needing:
            return list(photos)
        crops = np.concatenate([photo.arrays[TO_RESTORE] for photo in needing])
        guides = self._guides(needing)
        parts = []
        for start in range(0, len(crops), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(crops[start : start + BATCH])).to(self.device)
            guide = None if guides is None else guides[start : start + BATCH].to(self.device)
            parts.append(restored_pixels(self.network, self.spec, batch, guide).cpu())
        pixels = torch.cat(parts)
        scores = fidelity(torch.from_numpy(crops), pixels).numpy()
        results, end = {}, 0
        for photo in needing:
            start, end = end, end + len(photo.arrays[TO_RESTORE])
            results[photo.image_id] = photo.having(
                **{
                    RESTORED: pixels[start:end].numpy(),
                    FIDELITY: scores[start:end],
                    restored_crop(self.embed_template): self._as_embedded(photo, pixels[start:end]),
                }
            )
        return [results.get(photo.image_id, photo) for photo in photos]

    def _guides(self, photos: Sequence[PhotoFaces]) -> Tensor | None:
        """What a network wants beside the crop, made of the landmarks as they lie in it."""
        if self.spec.guide is None or self.spec.preprocess is None:
            return None
        guides = []
        for photo in photos:
            rows = photo.arrays[RESTORED_FACES]
            boxes, landmarks = (torch.tensor(photo.arrays[name][rows]) for name in (BOXES, LANDMARKS))
            to_crop = torch.linalg.inv(_square(self.spec.preprocess.template.transforms(boxes, landmarks)))
            points = landmarks.double() @ to_crop[:, :2, :2].transpose(1, 2) + to_crop[:, None, :2, 2]
            guides.append(self.spec.guide(points.float()))
        return torch.cat(guides)

    def _as_embedded(self, photo: PhotoFaces, pixels: Tensor) -> np.ndarray:
        """Cut the recognition model's view out of the restored pictures, by way of the photo's coordinates."""
        assert self.spec.preprocess is not None
        rows = photo.arrays[RESTORED_FACES]
        boxes, landmarks = (torch.tensor(photo.arrays[name][rows]) for name in (BOXES, LANDMARKS))
        restored_to_photo = _square(self.spec.preprocess.template.transforms(boxes, landmarks)) @ _enlarged(
            self.spec.scale
        )
        view_to_photo = _square(self.embed_template.transforms(boxes, landmarks))
        view_to_restored = torch.linalg.solve(restored_to_photo, view_to_photo)[:, :2].float()
        return align(list(pixels), view_to_restored, torch.arange(len(rows)), self.embed_template.size).numpy()


def restored_pixels(network: torch.nn.Module, spec: ModelSpec, crops: Tensor, guide: Tensor | None = None) -> Tensor:
    """Restore crops (N, S, S, 3) uint8 to (N, S * scale, S * scale, 3) uint8; `guide` is what `spec.guide` makes.

    Raises:
        FloatingPointError: if the network's output is not finite: nothing is passed off as restored.
    """
    assert spec.preprocess is not None
    with torch.inference_mode():
        faces = spec.preprocess(crops)
        output = (network(faces) if guide is None else network(faces, guide)).float()
    if not bool(torch.isfinite(output).all()):
        raise FloatingPointError(f"{spec.name} gave values that are not finite")
    mean, std = (
        torch.tensor(v, device=output.device)[:, None, None] for v in (spec.preprocess.mean, spec.preprocess.std)
    )
    return (output * std + mean).clamp(0, 255).round().byte().permute(0, 2, 3, 1)


def fidelity(crops: Tensor, restored: Tensor) -> Tensor:
    """PSNR in dB (N,) between crops (N, S, S, 3) uint8 and the restored ones reduced to the same size."""
    reduced = F.interpolate(restored.permute(0, 3, 1, 2).float(), size=crops.shape[1:3], mode="area")
    error = (reduced - crops.permute(0, 3, 1, 2).float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error.clamp_min(1e-3))


def judge(fidelity_db: float, identity_similarity: float, least_similarity: float | None) -> str:
    """Return why a restored face is rejected, or an empty string if it is accepted.

    `least_similarity` is a calibrated threshold of the recognition model; without one, identity cannot be judged.
    """
    if fidelity_db < MIN_FIDELITY:
        return f"fidelity {fidelity_db:.1f} dB is under {MIN_FIDELITY:.0f}: it shows something else than the photo"
    if least_similarity is None:
        return "identity not judged: the recognition model is not calibrated ('visage evaluate verification' does it)"
    if identity_similarity < least_similarity:
        return f"identity similarity {identity_similarity:.2f} is under {least_similarity:.2f}: another person"
    return ""


def _square(transforms: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(transforms), 1, 3)
    return torch.cat([transforms.double(), last], dim=1)


def _enlarged(scale: int) -> Tensor:
    """From pixels of a picture enlarged by `scale` to pixels of the picture itself."""
    shift = 0.5 / scale - 0.5
    return torch.tensor([[1 / scale, 0, shift], [0, 1 / scale, shift], [0, 0, 1]], dtype=torch.float64)
