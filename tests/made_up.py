"""A catalog of made-up people: photographs with faces whose vectors resemble each other as those of real ones do."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Content, Embedding, Face, FaceIdentity, Identity, Image, ModelVersion, now
from tasks.calibration import Calibration, Thresholds
from tasks.group import Grouped, group_version

DIMENSION = 32
VERSIONS = ("first", "second")


def calibration(contract: str) -> Calibration:
    """Joins from a similarity of about 0.6 on, proposes from 0.55."""
    thresholds = Thresholds(far_1e_1=0.3, far_1e_2=0.4, far_1e_3=0.5, accuracy=0.45)
    return Calibration(
        contract=contract,
        thresholds=thresholds,
        slope=25,
        offset=-10,
        source="a guess",
        same_pairs=9,
        different_pairs=9,
    )


@dataclass
class Crowd:
    """People with random vectors in a catalog with two embedding versions; `spread` tells how unlike themselves they look."""

    catalog: Catalog
    spread: float = 0.6
    seed: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    shows: dict[int, int] = field(default_factory=dict)  # face -> who it is in truth
    photo_of: dict[int, int] = field(default_factory=dict)
    nights: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.centres: dict[tuple[str, int], NDArray[np.float64]] = {}
        with self.catalog.write() as session:
            self.collection_id = collections.add(session, "crowd", "/photos", [], [], []).id
            rows = [
                ModelVersion(
                    name=name,
                    version=1,
                    role="embed" if name in VERSIONS else name,
                    contract=f"contract {name}",
                    contract_content={},
                    weights_sha256="0",
                    dimension=DIMENSION,
                    licence="CC0",
                    calibration=calibration(name).model_dump(mode="json"),
                    serving=name == VERSIONS[0],
                )
                for name in ("detect", *VERSIONS)
            ]
            session.add_all(rows)
            session.flush()
            self.versions = {row.name: row.id for row in rows}

    def photo(self, *people: int, quality: float = 0.9, versions: Sequence[str] = VERSIONS) -> list[int]:
        """Take a photo of some people; returns the ids of their faces."""
        with self.catalog.write() as session:
            content = Content(
                collection_id=self.collection_id,
                sha256=f"{len(self.photo_of)}-{self.seed}",
                status="done",
                recipe="r",
                owner_image_id=0,
                run_id=0,
                notes=[],
            )
            session.add(content)
            session.flush()
            session.add(
                Image(
                    collection_id=self.collection_id,
                    key=f"{content.id}.jpg",
                    etag="1",
                    size=1,
                    modified_at=now(),
                    status="done",
                    recipe="r",
                    content_id=content.id,
                )
            )
            faces = [
                Face(
                    content_id=content.id,
                    detector_id=self.versions["detect"],
                    ordinal=n,
                    x1=100.0 * n,
                    y1=0.0,
                    x2=100.0 * n + 80,
                    y2=100.0,
                    landmarks=np.zeros(10, np.float32),
                    score=1.0,
                    quality=quality,
                    quality_parts={},
                    crop_key=f"{content.id}-{n}.jpg",
                )
                for n in range(len(people))
            ]
            session.add_all(faces)
            session.flush()
            for face, person in zip(faces, people, strict=True):
                self.shows[face.id], self.photo_of[face.id] = person, content.id
                session.add_all(
                    Embedding(face_id=face.id, model_version_id=self.versions[v], vector=self.look(v, person))
                    for v in versions
                )
            return [face.id for face in faces]

    def look(self, version: str, person: int) -> NDArray[np.float32]:
        """How a person looks today: a unit vector."""
        centre = self.centres.setdefault((version, person), self.random.normal(size=DIMENSION) / np.sqrt(DIMENSION))
        seen = centre + self.random.normal(size=DIMENSION) * self.spread / np.sqrt(DIMENSION)
        unit: NDArray[np.float32] = (seen / np.linalg.norm(seen)).astype(np.float32)
        return unit

    def night(self, version: str = VERSIONS[0]) -> Grouped:
        self.nights += 1
        return group_version(self.catalog, self.versions[version], self.nights)

    def places(self, version: str = VERSIONS[0]) -> dict[int, int | None]:
        """The identity of every face that a night has looked at."""
        with self.catalog.read() as session:
            rows = select(FaceIdentity.face_id, FaceIdentity.identity_id).where(
                FaceIdentity.model_version_id == self.versions[version]
            )
            return dict(session.execute(rows).tuples().all())

    def names(self, version: str = VERSIONS[0]) -> dict[int, str]:
        with self.catalog.read() as session:
            rows = select(Identity.id, Identity.name).where(
                Identity.model_version_id == self.versions[version], Identity.name.is_not(None)
            )
            return {identity: name for identity, name in session.execute(rows).tuples() if name}

    def exemplars(self, version: str = VERSIONS[0]) -> set[int]:
        with self.catalog.read() as session:
            rows = select(FaceIdentity.face_id).where(
                FaceIdentity.model_version_id == self.versions[version], FaceIdentity.exemplar
            )
            return set(session.scalars(rows))
