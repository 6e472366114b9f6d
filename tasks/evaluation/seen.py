"""Look at labelled pictures once: find the central face of each, and let several models work on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.ray_cluster import device
from infra.settings import Settings
from tasks.assess import measure
from tasks.describe import Columns, describe_crops, joined
from tasks.evaluation.central_face import Progress, Recogniser, central_faces, template_of
from tasks.execution.inference import load_for_inference
from tasks.model_version import ModelVersion
from tasks.photo_faces import crop, estimate, of_all
from tasks.recipe import MEASURED_VERSION


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
    networks = {version: load_for_inference(version, device()) for version in describers}
    recogniser = None if embedder is None else Recogniser(embedder)
    templates = [template_of(version) for version in (*describers, *([embedder] if embedder else []))]
    kept, parts = list[str](), list[Columns]()
    for found in central_faces(settings, detector, images, names, templates, on_progress):
        faces = measure(found, device())
        kept += [face.key for face in faces]
        columns: Columns = {}
        for attribute in MEASURED_VERSION.spec.attributes:
            name = estimate(MEASURED_VERSION.contract, attribute.name, "value")
            columns[name] = of_all(faces, name)
        for version, network in networks.items():
            crops = of_all(faces, crop(template_of(version)))
            wanted = frozenset(attribute.name for attribute in version.spec.attributes)
            columns |= describe_crops(version, network, crops, wanted, device())
        if recogniser is not None:
            recogniser.embed(faces)
        parts.append(columns)
    return Seen(tuple(kept), joined(parts), {} if recogniser is None else recogniser.embeddings)
