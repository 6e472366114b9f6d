"""A collection with identity labels: which picture shows whom, and the faces in them, found once and kept on disk."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.settings import Settings
from models.template import Template
from tasks.evaluation.central_face import Progress, central_faces
from tasks.model_version import ModelVersion
from tasks.photo_faces import crop, of_all

COLUMNS = ("image", "identity")
CROPS, FACES = "crops.npy", "faces.json"


class UnusableLabels(ValueError):
    """The labels do not say who is on which picture; the message says where and why."""


@dataclass(frozen=True)
class Labelled:
    """Pictures of a folder or tar file by name, and who is on each: parallel, ordered by name.

    `digest` changes with the pictures (by size and time of change) and with the labels.
    """

    images: Path
    names: tuple[str, ...]
    identities: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Faces:
    """Faces found in labelled pictures: `folder`/crops.npy holds (N, S, S, 3) uint8, of which the first `len` rows count.

    `without_face` are the pictures that are left out; `names` are those of the faces.
    """

    folder: Path
    identities: tuple[str, ...]
    without_face: tuple[str, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.identities)

    def crops(self) -> np.ndarray:
        """Map the crops into memory, read-only."""
        return np.load(self.folder / CROPS, mmap_mode="r")[: len(self)]


def read_collection(images: Path, labels: Path | None) -> Labelled:
    """Read who is on which picture: from a CSV (image, identity), or from a folder with a folder for each identity.

    Raises:
        UnusableLabels: naming file and line, or saying what is missing.
    """
    rows = _by_folder(images) if labels is None else read_identities(labels)
    if not rows:
        raise UnusableLabels(
            f"{labels or images}: no labelled pictures. Give a folder of folders, or a CSV by --labels."
        )
    names, identities = zip(*sorted(rows.items()), strict=True)
    facts = hashlib.sha256(json.dumps([names, identities, picture_state(images, names)]).encode()).hexdigest()
    return Labelled(images, names, identities, facts)


def find_faces(
    settings: Settings,
    detector: ModelVersion,
    template: Template,
    labelled: Labelled,
    folder: Path,
    on_progress: Progress = lambda done, total: None,
) -> Faces:
    """Find and align the central face of every picture, as every night finds faces; what `folder` holds complete is reused.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
    """
    if (folder / FACES).exists():
        known = json.loads((folder / FACES).read_text(encoding="utf-8"))
        return Faces(folder, *(tuple(known.get(part, ())) for part in ("identities", "without_face", "names")))
    folder.mkdir(parents=True, exist_ok=True)
    identity = dict(zip(labelled.names, labelled.identities, strict=True))
    shape = (len(identity), template.size, template.size, 3)
    crops = np.lib.format.open_memmap(folder / CROPS, mode="w+", dtype=np.uint8, shape=shape)
    found: list[str] = []
    for faces in central_faces(settings, detector, labelled.images, labelled.names, [template], on_progress):
        crops[len(found) : len(found) + len(faces)] = of_all(faces, crop(template))
        found += [face.key for face in faces]
    crops.flush()
    seen = set(found)
    facts = {
        "identities": [identity[name] for name in found],
        "without_face": [name for name in labelled.names if name not in seen],
        "names": found,
    }
    partial = folder / f"{FACES}.partial"
    partial.write_text(json.dumps(facts), encoding="utf-8")
    partial.replace(folder / FACES)  # complete from here on
    return Faces(folder, tuple(facts["identities"]), tuple(facts["without_face"]), tuple(found))


def _by_folder(images: Path) -> dict[str, str]:
    if not images.is_dir():
        raise UnusableLabels(
            f"{images} is no folder with a folder for each identity: say by --labels who is on which picture."
        )
    paths = (path for path in images.glob("*/*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(images).as_posix(): path.parent.name for path in paths}


def read_identities(labels: Path) -> dict[str, str]:
    """Who is on which picture, by a CSV (image, identity).

    Raises:
        UnusableLabels: naming file and line.
    """
    rows: dict[str, str] = {}
    try:
        with labels.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise UnusableLabels(
                    f"{labels}, line 1: no column {', '.join(absent)}; needed are {', '.join(COLUMNS)}"
                )
            for row in reader:
                image, identity = ((row[column] or "").strip() for column in COLUMNS)
                if not image or not identity:
                    raise UnusableLabels(f"{labels}, line {reader.line_num}: image or identity is empty")
                if rows.setdefault(image, identity) != identity:
                    raise UnusableLabels(
                        f"{labels}, line {reader.line_num}: {image!r} is {identity!r} here and {rows[image]!r} before"
                    )
    except UnicodeDecodeError as error:
        raise UnusableLabels(f"{labels}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return rows


def picture_state(images: Path, names: Sequence[str]) -> list[tuple[int, int]]:
    paths: Iterable[Path] = (images / name for name in names) if images.is_dir() else [images]
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
