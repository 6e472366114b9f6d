"""Probe: turn a photograph that somebody searches with into vectors. Its bytes stay in memory, and are not kept.

Models stay loaded between photographs, as a service wants it.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn

from infra import logs
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.settings import Settings
from models.spec import Role
from tasks.align import align_faces
from tasks.decode import DecodeFailure, DecodeLimits, Reason, decode
from tasks.decode import Photo as Picture
from tasks.detect import Decoded, Detect
from tasks.embed import embed
from tasks.execution.guard import out_of_memory
from tasks.execution.inference import load_for_inference
from tasks.model_version import ModelVersion, NotInstalled
from tasks.photo_faces import BOXES, SCORES, PhotoFaces, crop
from tasks.recipe import installed, version_for

ASK_AGAIN_SECONDS = 60.0  # asking the registry takes as long as half a small photograph

log = logs.logger()


class NothingToSearch(LookupError):
    """The catalog holds no complete embedding version yet, or the photo shows no face."""


class UnreadablePhoto(ValueError):
    """The file to search with is no picture, or a damaged one."""


@dataclass(frozen=True)
class Probed:
    """Faces of a photograph: boxes (N, 4) in its upright pixels, scores (N,), vectors (N, D) of unit length.

    `pixels` (H, W, 3) uint8 is the photograph as the detector saw it, maybe reduced; `width` and `height` are the original's.
    """

    width: int
    height: int
    boxes: np.ndarray
    scores: np.ndarray
    vectors: np.ndarray
    pixels: np.ndarray


class Prober:
    """Find faces with the detector that the settings name, and embed them with the version that the catalog's queries use.

    Safe to share by threads. A detector that is promoted meanwhile is noticed within a minute.

    `max_megapixels`: the most that a photograph may have, where that is less than the settings allow.
    """

    def __init__(self, settings: Settings, max_megapixels: float = math.inf) -> None:
        self.settings = settings
        most = min(settings.max_megapixels, max_megapixels)
        self.limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=most)
        self.lock = threading.Lock()
        self._loaded: tuple[tuple[str, str], Detect, ModelVersion, nn.Module] | None = None
        self._detector: ModelVersion | None = None
        self._asked_at = -math.inf

    def __call__(self, data: bytes, version: ModelVersionRow) -> Probed:
        """Probe a photograph.

        Raises:
            UnreadablePhoto: if it is no picture that can be read, or needs more memory than there is.
            NothingToSearch: if no face is in it.
            UnknownModel, NotInstalled: if the detector, or the version that made the catalog, is not on this machine.
            WrongRole: if the settings name a detector that is none.
        """
        with self.lock, _within_memory():  # one at a time: two would share the processors and take twice the memory
            picture = self._decoded(data)
            detect, embedder, network = self._models(version)
            [found] = detect([Decoded(PhotoFaces(0, "probe", len(data)), picture, data)])
            if not found.photo.face_count:
                raise NothingToSearch(
                    "no face was found in this picture; try one where the face is larger or turned less"
                )
            assert embedder.spec.preprocess is not None
            template = embedder.spec.preprocess.template
            photo = align_faces(found, self.limits, [template])
            vectors = embed(network, embedder.spec, photo.arrays[crop(template)], "cpu")
        return Probed(picture.width, picture.height, photo.arrays[BOXES], photo.arrays[SCORES], vectors, picture.pixels)

    def _decoded(self, data: bytes) -> Picture:
        try:
            return decode(data, self.limits, long_side=self.settings.detect_long_side)
        except DecodeFailure as failure:
            advice = "; search with a smaller copy of it" if failure.reason is Reason.TOO_MANY_PIXELS else ""
            raise UnreadablePhoto(f"the photograph cannot be read: {failure}{advice}") from failure

    def _models(self, version: ModelVersionRow) -> tuple[Detect, ModelVersion, nn.Module]:
        detector = self._detector_in_use()
        contracts = (detector.contract, version.contract)
        if self._loaded is None or self._loaded[0] != contracts:
            reference = f"{version.name}@{version.version}"
            embedder = installed(reference, self.settings)
            if embedder.contract != version.contract:
                raise NotInstalled(
                    f"the catalog was made with another {reference} than is installed here (other weights or "
                    "preprocessing); 'visage run' brings the catalog to what is here"
                )
            self._loaded = (contracts, Detect(detector, "cpu"), embedder, load_for_inference(embedder))
        return self._loaded[1:]

    def _detector_in_use(self) -> ModelVersion:
        """Which detector the settings name; a registry that does not answer is no reason to do without the one of before."""
        if time.monotonic() >= self._asked_at + ASK_AGAIN_SECONDS:
            try:
                self._detector = version_for(Role.DETECT, self.settings.detect_model, self.settings)
            except Exception as error:
                if self._detector is None:
                    raise
                log.warning("the detector in use could not be asked for", error=str(error))
            self._asked_at = time.monotonic()
        assert self._detector is not None
        return self._detector


@contextmanager
def _within_memory() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UnreadablePhoto("it needs more memory than there is; search with a smaller copy of it") from error
