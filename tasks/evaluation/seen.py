"""Look at labelled pictures once: find the central face of each, and let several models work on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.ray_cluster import device
from infra.settings import Settings
from tasks.assess import measure
from tasks.describe import Columns, describe_crops, joined
from tasks.embed import embed
from tasks.evaluation.recognition import GROUP, FaceFinder, Progress, read_images, template_of
from tasks.execution.inference import load_for_inference
from tasks.photo_faces import crop, estimate
from tasks.recipe import MEASURED_VERSION
from tasks.versioning.install import ModelVersion


@dataclass(frozen=True)
class Seen:
    """The pictures with a face (N), in columns of as many rows what each version says of them, and their embeddings."""

    names: tuple[str, ...]
    columns: Columns
    embeddings: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def look_at(
    settings: Settings,
    detector: ModelVersion,
    images: Path,
    names: Sequence[str],
    describers: Sequence[ModelVersion] = (),
    embedder: ModelVersion | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Seen:
    """Describe, embed and measure the central face of pictures by name, with everything that the versions can say.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
    """
    finder = FaceFinder(settings, detector)
    networks = {version: load_for_inference(version, device()) for version in describers}
    recogniser = None if embedder is None else load_for_inference(embedder, device())
    templates = [template_of(version) for version in (*describers, *([embedder] if embedder else []))]
    pictures, kept, parts, done = read_images(images, names), list[str](), list[Columns](), 0
    embeddings: dict[str, NDArray[np.float32]] = {}
    while group := list(islice(pictures, GROUP)):
        faces = measure([finder.align(item, templates) for item in finder(group)], device())
        kept += [face.key for face in faces]
        columns: Columns = {}
        for attribute in MEASURED_VERSION.spec.attributes if faces else ():
            name = estimate(MEASURED_VERSION.contract, attribute.name, "value")
            columns[name] = np.concatenate([face.arrays[name] for face in faces])
        for version, network in networks.items() if faces else ():
            crops = np.concatenate([face.arrays[crop(template_of(version))] for face in faces])
            wanted = frozenset(attribute.name for attribute in version.spec.attributes)
            columns |= describe_crops(version, network, crops, wanted, device())
        if recogniser is not None and embedder is not None and faces:
            crops = np.concatenate([face.arrays[crop(template_of(embedder))] for face in faces])
            embeddings |= dict(zip(kept[-len(faces) :], embed(recogniser, embedder.spec, crops, device()), strict=True))
        parts += [columns] if columns else []
        done += len(group)
        on_progress(done, len(names))
    return Seen(tuple(kept), joined(parts), embeddings)
