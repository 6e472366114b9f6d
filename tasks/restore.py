"""Restore: sharpen the faces that need it. Restored detail is invented, so the result is judged and kept apart.

A restored crop is accepted only if, made small again, it still looks like the input (fidelity), if it is sharper than the
photo, and if it is still the same person to the recognition model (identity similarity).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.alignment import align, blacken_outside
from models.quality import QUALITY_TEMPLATE, sharpness
from models.template import Template
from tasks.execution.guard import guarded
from tasks.execution.restorer import Restorer
from tasks.execution.transfer import download, upload
from tasks.model_version import ModelVersion
from tasks.photo_faces import (
    BOXES,
    FIDELITY,
    LANDMARKS,
    REPEATED,
    RESTORED,
    RESTORED_FACES,
    RESTORED_SHARPNESS,
    TO_RESTORE,
    PhotoFaces,
    of_all,
    restored_crop,
)

MIN_FIDELITY = 23.0  # dB; under it the restored face no longer shows what the photo shows (seen on shared photographs)


class Restore:
    """Restore the crops that the assess stage selected.

    In: `restored.input` (m, S, S, 3) of the restorer's template, with `restored.faces` (m,). Out: `restored.pixels`
    (m, S * scale, S * scale, 3) uint8, what they are judged by, and the restored faces as the recognition model wants to see
    them.
    """

    def __init__(self, version: ModelVersion, embed_template: Template, device: str) -> None:
        self.restorer = Restorer(version, device)
        self.embed_template = embed_template

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        """On a CPU, faces in batches take as long as one by one, minutes in all: there each photo has its own limit of time."""
        if torch.device(self.restorer.device).type == "cpu":
            return [done for photo in photos for done in guarded("restore", [photo], self._restore)]
        return guarded("restore", photos, self._restore)

    def _restore(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        needing = [photo for photo in photos if TO_RESTORE in photo.arrays]
        if not needing:
            return list(photos)
        crops = upload(of_all(needing, TO_RESTORE), self.restorer.device)
        landmarks = torch.cat([landmarks_in_crop(photo, self.restorer.template) for photo in needing])
        restored = self.restorer(crops, landmarks)
        scores = fidelity(crops, restored.pixels)
        results, end = {}, 0
        for photo in needing:
            start, end = end, end + len(photo.arrays[TO_RESTORE])
            pixels = restored.pixels[start:end]
            found = {
                RESTORED: pixels,
                FIDELITY: scores[start:end],
                RESTORED_SHARPNESS: sharpness(self.seen_as(QUALITY_TEMPLATE, photo, pixels)),
                restored_crop(self.embed_template): self.seen_as(self.embed_template, photo, pixels),
            }
            repeated = {REPEATED: restored.repeated[start:end]}
            results[photo.image_id] = photo.having(**download(found), **repeated)
        return [results.get(photo.image_id, photo) for photo in photos]

    def seen_as(self, view: Template, photo: PhotoFaces, pixels: Tensor) -> Tensor:
        """Cut another view out of the restored pictures, by way of the photo's coordinates.

        What lies outside of the photo is black, as in a view that is cut out of the photo, whatever the restorer made of it.
        """
        boxes, landmarks = _restored_faces(photo)
        restored_to_photo = to_photo(self.restorer, boxes, landmarks)
        view_to_photo = view.transforms(boxes, landmarks)
        view_to_restored = torch.linalg.solve(_square(restored_to_photo), _square(view_to_photo))[:, :2].float()
        seen = align(list(pixels), view_to_restored, torch.arange(len(pixels)), view.size)
        blacken_outside(seen, view_to_photo, torch.tensor([[photo.height, photo.width]]).expand(len(seen), 2))
        return seen


def landmarks_in_crop(photo: PhotoFaces, template: Template) -> Tensor:
    """Where the landmarks (m, 5, 2) of the faces to restore lie in their crops."""
    boxes, landmarks = _restored_faces(photo)
    to_crop = torch.linalg.inv(_square(template.transforms(boxes, landmarks)))
    points = landmarks.double() @ to_crop[:, :2, :2].transpose(1, 2) + to_crop[:, None, :2, 2]
    return points.float()


def to_photo(restorer: Restorer, boxes: Tensor, landmarks: Tensor) -> Tensor:
    """Transforms (m, 2, 3) from pixels of a restored crop to pixels of its photo."""
    crop_to_photo = _square(restorer.template.transforms(boxes, landmarks))
    return (crop_to_photo @ _enlarged(restorer.spec.scale))[:, :2]


def fidelity(crops: Tensor, restored: Tensor) -> Tensor:
    """PSNR in dB (N,) between crops (N, S, S, 3) uint8 and the restored ones reduced to the same size."""
    reduced = F.interpolate(restored.permute(0, 3, 1, 2).float(), size=crops.shape[1:3], mode="area")
    error = (reduced - crops.permute(0, 3, 1, 2).float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error.clamp_min(1e-3))


def judge(
    fidelity_db: float,
    sharpness_before: float,
    sharpness_after: float,
    identity_similarity: float,
    least_similarity: float | None,
) -> str:
    """Return why a restored face is rejected, or an empty string if it is accepted.

    `least_similarity` is a calibrated threshold of the recognition model; without one, identity cannot be judged.
    """
    if fidelity_db < MIN_FIDELITY:
        return f"fidelity {fidelity_db:.1f} dB is under {MIN_FIDELITY:.0f}: it shows something else than the photo"
    if sharpness_after <= sharpness_before:
        return f"sharpness {sharpness_after:.2f} is not above the photo's {sharpness_before:.2f}: nothing is gained"
    if least_similarity is None:
        return "identity not judged: the recognition model is not calibrated ('visage evaluate verification' does it)"
    if identity_similarity < least_similarity:
        return f"identity similarity {identity_similarity:.2f} is under {least_similarity:.2f}: another person"
    return ""


def _restored_faces(photo: PhotoFaces) -> tuple[Tensor, Tensor]:
    """Boxes and landmarks of the faces to restore."""
    rows = photo.arrays[RESTORED_FACES]
    boxes, landmarks = (torch.tensor(photo.arrays[name][rows]) for name in (BOXES, LANDMARKS))
    return boxes, landmarks


def _square(transforms: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(transforms), 1, 3)
    return torch.cat([transforms.double(), last], dim=1)


def _enlarged(scale: int) -> Tensor:
    """From pixels of a picture enlarged by `scale` to pixels of the picture itself."""
    shift = 0.5 / scale - 0.5
    return torch.tensor([[1 / scale, 0, shift], [0, 1 / scale, shift], [0, 0, 1]], dtype=torch.float64)
