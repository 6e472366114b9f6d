"""Whole photographs: find the faces, restore those that need it, judge them as every night does, and paste back what passed.

What was not restored is said with the reason, and a photo in which nothing was restored is not written again: no copy passes
for a restored one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.ray_cluster import device
from infra.settings import Settings
from infra.storage.base import Filter
from models import paste
from models.spec import Role
from tasks.align import align_faces
from tasks.assess import EYE_DISTANCE, MAX_RESTORED_EYE_DISTANCE, MAX_RESTORED_SHARPNESS, MIN_RESTORED_QUALITY, assess
from tasks.calibration import Calibration, shipped_calibration
from tasks.decode import DecodeFailure, DecodeLimits, decode
from tasks.detect import Decoded, Detect
from tasks.embed import Embed
from tasks.execution.guard import out_of_memory
from tasks.images.mark import marked_png
from tasks.photo_faces import (
    BOXES,
    FIDELITY,
    IDENTITY_SIMILARITY,
    LANDMARKS,
    QUALITY,
    REPEATED,
    RESTORED,
    RESTORED_FACES,
    RESTORED_SHARPNESS,
    PhotoFaces,
    quality_part,
)
from tasks.recipe import Recipe, version_for
from tasks.restore import Restore, judge, to_photo

MAX_UPSCALE = 4.0
MAX_WRITTEN_MEGAPIXELS = 200.0

log = logging.getLogger("visage")
Outcome = Literal["restored", "rejected", "left"]


class NothingToRestore(LookupError):
    """There is no photograph where one should be."""


@dataclass(frozen=True)
class Measured:
    """What a restored face was judged by."""

    fidelity: float
    identity_similarity: float
    sharpness: float
    repeated_in_float32: bool


@dataclass(frozen=True)
class FaceReport:
    """What became of a face; box in pixels of the upright photo. `measured` is there if the restorer worked on it."""

    box: tuple[float, ...]
    outcome: Outcome
    reason: str
    quality: float
    eye_distance: float
    photo_sharpness: float
    measured: Measured | None = None


@dataclass(frozen=True)
class PhotoReport:
    """What became of a photo. `written` is the restored copy, if any face was restored; `problem`, why it was not processed."""

    photo: str
    written: str | None
    problem: str
    faces: tuple[FaceReport, ...]
    restore_seconds: float = 0.0
    paste_seconds: float = 0.0


class PhotoRestorer:
    """Restore photographs with one version of a restorer (NAME, NAME@VERSION or NAME@ALIAS).

    `upscale` enlarges the photo (Lanczos) before faces are pasted into it, so that they keep more of their detail.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if one of the models at work cannot be had.
        ValueError: for an upscale that is not 1..4.
    """

    def __init__(self, settings: Settings, model: str, upscale: float = 1.0) -> None:
        if not 1 <= upscale <= MAX_UPSCALE:
            raise ValueError(f"photos can be enlarged 1 to {MAX_UPSCALE:g} times, not {upscale:g}")
        self.upscale, self.long_side = upscale, settings.detect_long_side
        self.restorer_version = version_for(Role.RESTORE, model, settings)
        embedder = version_for(Role.EMBED, settings.embed_model, settings)
        detector = version_for(Role.DETECT, settings.detect_model, settings)
        self.recipe = Recipe(detector, embedder, self.restorer_version, (), frozenset())
        self.limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
        self.least_similarity = least_similarity(settings, embedder.contract)
        where = device()
        assert embedder.spec.preprocess is not None
        self.detect, self.embed = Detect(detector, where), Embed(embedder, where)
        self.restore = Restore(self.restorer_version, embedder.spec.preprocess.template, where)

    def __call__(self, path: Path, name: str, out: Path) -> PhotoReport:
        """Restore one photo; what is written lies in `out`, under its name with `.restored.png` at the end.

        Raises:
            OSError: if it cannot be written.
        """
        try:
            report, png = self._restored(path, name)
        except (DecodeFailure, OSError) as failure:
            return PhotoReport(name, None, str(failure), ())
        except Exception as error:  # one bad photo never takes its neighbours along
            log.warning("%s: not restored", name, exc_info=error)
            return PhotoReport(name, None, _what_broke(error), ())
        if png is None:
            return report
        target = out / f"{name}.restored.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(png)
        partial.replace(target)
        return replace(report, written=str(target))

    def _restored(self, path: Path, name: str) -> tuple[PhotoReport, bytes | None]:
        """What became of a photo, and the restored copy as a PNG if there is one."""
        data = path.read_bytes()
        picture = decode(data, self.limits, long_side=self.long_side)
        photo = PhotoFaces(0, name, len(data), width=picture.width, height=picture.height)
        [found] = self.detect([Decoded(photo, picture, data)])
        [photo] = assess([align_faces(found, self.limits, self.recipe.templates)], self.recipe, self.detect.device)
        [photo] = self.embed(self.restore([photo]))
        if photo.failure is not None:
            return PhotoReport(name, None, photo.failure.message, ()), None
        faces = tuple(self._report(photo, face) for face in range(photo.face_count))
        report = PhotoReport(name, None, "", faces, restore_seconds=photo.seconds.get("restore", 0.0))
        if not any(face.outcome == "restored" for face in faces):
            return report, None
        if picture.width * picture.height * self.upscale**2 > MAX_WRITTEN_MEGAPIXELS * 1e6:
            return replace(report, problem=f"enlarged, it would have over {MAX_WRITTEN_MEGAPIXELS:g} megapixels"), None
        whole = decode(data, self.limits) if picture.scale > 1 else picture
        start = time.perf_counter()
        restored = self._pasted(whole.pixels, photo, faces)
        report = replace(report, paste_seconds=time.perf_counter() - start)
        return report, marked_png(restored, self.restorer_version, "Photograph with restored faces.")

    def _report(self, photo: PhotoFaces, face: int) -> FaceReport:
        arrays = photo.arrays
        quality = float(arrays[QUALITY][face])
        eyes, sharp = float(arrays[EYE_DISTANCE][face]), float(arrays[quality_part("sharpness")][face])
        report = FaceReport(tuple(arrays[BOXES][face].tolist()), "left", "", quality, eyes, sharp)
        rows = np.flatnonzero(arrays.get(RESTORED_FACES, np.zeros(0, np.int64)) == face)
        if not len(rows):
            return replace(report, reason=_why_left(quality, eyes, sharp))
        row = int(rows[0])
        measured = Measured(
            fidelity=float(arrays[FIDELITY][row]),
            identity_similarity=float(arrays[IDENTITY_SIMILARITY][row]),
            sharpness=float(arrays[RESTORED_SHARPNESS][row]),
            repeated_in_float32=bool(arrays[REPEATED][row]),
        )
        reason = judge(
            measured.fidelity, sharp, measured.sharpness, measured.identity_similarity, self.least_similarity
        )
        return replace(report, outcome="rejected" if reason else "restored", reason=reason, measured=measured)

    def _pasted(self, pixels: np.ndarray, photo: PhotoFaces, faces: Sequence[FaceReport]) -> np.ndarray:
        background = enlarged(pixels, self.upscale)
        arrays = photo.arrays
        accepted = [
            row for row, face in enumerate(arrays[RESTORED_FACES].tolist()) if faces[face].outcome == "restored"
        ]
        # The smallest first: whoever stands in front has the larger face.
        accepted.sort(key=lambda row: faces[int(arrays[RESTORED_FACES][row])].eye_distance)
        rows = arrays[RESTORED_FACES][accepted]
        boxes, landmarks = (torch.tensor(arrays[name][rows]) for name in (BOXES, LANDMARKS))
        transforms = paste.enlarged(to_photo(self.restore.restorer, boxes, landmarks), self.upscale)
        return paste.paste(
            torch.from_numpy(background), torch.from_numpy(arrays[RESTORED][accepted]), transforms
        ).numpy()


def restore_photos(
    settings: Settings,
    source: Path,
    out: Path,
    model: str | None = None,
    upscale: float = 1.0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PhotoReport]:
    """Restore a photo, or all in a folder; copies with restored faces go to `out`. `model` None: what the settings name.

    Raises:
        NothingToRestore: if there is no photograph.
        UnknownModel, NotInstalled, WrongRole, ValueError: as PhotoRestorer.
    """
    photos = photographs(source, out)
    restorer = PhotoRestorer(settings, model or settings.restore_model, upscale)
    root = source if source.is_dir() else source.parent
    reports = []
    for done, path in enumerate(photos):
        on_progress(done, len(photos))
        reports.append(restorer(path, path.relative_to(root).as_posix(), out))
    on_progress(len(photos), len(photos))
    return reports


def photographs(source: Path, out: Path) -> list[Path]:
    """The photographs in a folder, but for those in `out`; or the one file that is named.

    Raises:
        NothingToRestore: if there is none.
    """
    if source.is_file():
        return [source]
    if out.resolve() == source.resolve():
        raise NothingToRestore(
            f"copies cannot go into {source} itself: name another folder, like {source / 'restored'}"
        )
    wanted, results = Filter(), out.resolve()
    found = sorted(
        path
        for path in source.rglob("*")
        if path.is_file() and wanted(path.relative_to(source).as_posix()) and results not in path.resolve().parents
    )
    if not found:
        raise NothingToRestore(f"{source} holds no photographs (by their names): nothing to restore.")
    return found


def enlarged(pixels: np.ndarray, factor: float) -> np.ndarray:
    """A picture (H, W, 3) uint8 enlarged by Lanczos' filter; as it is for a factor of 1. Always a new array."""
    if factor == 1:
        return pixels.copy()
    height, width = pixels.shape[:2]
    size = (round(width * factor), round(height * factor))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def least_similarity(settings: Settings, contract: str) -> float | None:
    """The similarity at which a recognition model takes a stranger for somebody once in a thousand; None if not calibrated."""
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        known = session.query(ModelVersionRow).filter_by(contract=contract).one_or_none()
        calibration = shipped_calibration(contract) if known is None else known.calibration
    catalog.close()
    return None if calibration is None else Calibration.model_validate(calibration).thresholds.far_1e_3


def _what_broke(error: Exception) -> str:
    if out_of_memory(error):
        return "it needs more memory than there is; restore a smaller copy of it"
    return f"{type(error).__name__}: {error}. This is a mistake of ours; the log has more of it."


def _why_left(quality: float, eye_distance: float, sharpness: float) -> str:
    if eye_distance >= MAX_RESTORED_EYE_DISTANCE and sharpness >= MAX_RESTORED_SHARPNESS:
        return f"needs no restoring: eyes {eye_distance:.0f} px apart, sharpness {sharpness:.2f}"
    return f"quality {quality:.2f} is under {MIN_RESTORED_QUALITY}: too little is left to restore from"
