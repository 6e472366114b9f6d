"""Evaluate grouping: labelled pictures arrive in several nights and orders, and BCubed compares who was put together.

The nights are those of `tasks.group`, kept in memory instead of the catalog: same policy, same exemplars, same merges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from infra.settings import Settings
from infra.storage.base import is_image_name
from infra.words import count
from tasks.calibration import Calibration
from tasks.evaluation.central_face import Progress, Recogniser, central_faces, open_tar
from tasks.evaluation.labels import UnusableLabels, read_table
from tasks.identities.grouping import NOBODY, Exemplars, Faces, Ints, Policy, bcubed, group
from tasks.model_version import ModelVersion

NIGHTS, ORDERS = (1, 5, 20), (0, 1, 2)
TWINS = 500  # pairs of the most similar faces of different people that are put into one photo each


class Round(BaseModel):
    """One way of arriving: BCubed over all faces, merges of people known already, and merges proposed to a person."""

    nights: int
    order: int
    precision: float
    recall: float
    f: float
    merges: int
    proposals: int
    seconds: float


class GroupingReport(BaseModel):
    """How well faces are grouped. `twins_merged`: of the most similar pairs of different people in one photo; must be 0."""

    faces: int
    people: int
    without_face: int
    join: float
    propose: float
    rounds: list[Round]
    twins: int
    twins_merged: int


@dataclass
class People:
    """What a catalog keeps from one night to the next."""

    policy: Policy
    exemplars: Exemplars
    identities: Ints
    photos: Ints
    founded: int = 0
    merges: int = 0
    proposals: int = 0
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def none(cls, policy: Policy, faces: Faces) -> "People":
        """The state before the first of `faces`, whose ids must be 0..N-1, has come."""
        nobody = Exemplars(faces.take(faces.ids[:0]), faces.ids[:0])
        return cls(policy, nobody, np.full(len(faces), NOBODY), faces.photos)

    def seen_together(self, identities: Ints) -> Ints:
        """Pairs of identities that a photo shows side by side; a photo shows two faces at most here."""
        shown = np.flatnonzero(np.isin(self.identities, identities))
        shown = shown[np.argsort(self.photos[shown], kind="stable")]
        beside = self.photos[shown[1:]] == self.photos[shown[:-1]]
        return np.stack([self.identities[shown[1:]][beside], self.identities[shown[:-1]][beside]], axis=1)

    def night(self, faces: Faces) -> None:
        """Group the faces of a night, and carry out what that changes."""
        start = perf_counter()
        result = group(faces, self.exemplars, self.policy, next_identity=self.founded, seen_together=self.seen_together)
        self.seconds.append(perf_counter() - start)
        self.founded += len(result.founded)
        self.merges += len(result.merges)
        self.proposals += len(result.proposals)
        for merge in result.merges:
            self.identities[self.identities == merge.absorbed] = merge.kept
        self.identities[faces.ids] = result.identities
        gone = [*result.exemplars.identities.tolist(), *(merge.absorbed for merge in result.merges)]
        stay = self.exemplars.take(np.flatnonzero(~np.isin(self.exemplars.identities, gone)))
        self.exemplars = Exemplars(
            stay.faces.followed_by(result.exemplars.faces),
            np.concatenate([stay.identities, result.exemplars.identities]),
        )


def read_labels(images: Path, labels: Path | None) -> dict[str, str]:
    """Who is in each picture: {name: person}, from a CSV with `image` and `person`, else from the pictures' folders.

    Pictures without a folder are called as LFW's are: Person_Name_0001.jpg.

    Raises:
        UnusableLabels: if the CSV lacks a column or a value, names a picture twice, or nobody is there twice.
    """
    found = _by_name(images) if labels is None else _by_table(labels)
    if len(set(found.values())) in (0, len(found)):
        raise UnusableLabels(
            f"{labels or images}: {count(len(found), 'picture')}, and nobody in two of them: nothing to group"
        )
    return found


def embed_labelled(
    settings: Settings,
    detector: ModelVersion,
    embedder: ModelVersion,
    images: Path,
    names: Sequence[str],
    on_progress: Progress,
) -> dict[str, NDArray[np.float32]]:
    """The central face of each picture, as every night finds and embeds it; pictures without a face are left out.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        UnusableLabels: if no face is found in any.
    """
    recogniser = Recogniser(embedder)
    for faces in central_faces(settings, detector, images, names, [recogniser.template], on_progress):
        recogniser.embed(faces)
    if not recogniser.embeddings:
        raise UnusableLabels(f"{images}: no face was found in {count(len(names), 'picture')}: nobody to group")
    return recogniser.embeddings


def evaluate_grouping(
    vectors: Mapping[str, NDArray[np.float32]], labels: Mapping[str, str], calibration: Calibration
) -> GroupingReport:
    """Let faces arrive in 1, 5 and 20 nights and three orders, and compare who was put together with the labels.

    All faces count as of full quality: there is nothing that would keep one from founding.
    """
    names = sorted(vectors)
    policy = Policy.of(calibration)
    truth = np.unique([labels[name] for name in names], return_inverse=True)[1]
    ids = np.arange(len(names))
    everyone = Faces(ids, np.stack([vectors[name] for name in names]), np.ones(len(names), np.float32), ids)
    rounds = [
        _round(everyone, truth, policy, nights, order)
        for nights in NIGHTS
        for order in ORDERS[: 1 if nights == 1 else None]
    ]
    twins, merged = near_twins(everyone, truth, policy)
    return GroupingReport(
        faces=len(names),
        people=int(truth.max()) + 1,
        without_face=len(labels) - len(names),
        join=policy.join,
        propose=policy.propose,
        rounds=rounds,
        twins=twins,
        twins_merged=merged,
    )


def _round(everyone: Faces, truth: Ints, policy: Policy, nights: int, order: int) -> Round:
    people = People.none(policy, everyone)
    for rows in np.array_split(np.random.default_rng(order).permutation(len(everyone)), nights):
        people.night(everyone.take(rows))
    result = bcubed(people.identities, truth)
    return Round(
        nights=nights,
        order=order,
        precision=result.precision,
        recall=result.recall,
        f=result.f,
        merges=people.merges,
        proposals=people.proposals,
        seconds=sum(people.seconds),
    )


def near_twins(everyone: Faces, truth: Ints, policy: Policy) -> tuple[int, int]:
    """Put the most similar faces of different people into one photo each: (pairs, how many of them became one person)."""
    photos = everyone.photos.copy()
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(photos), dtype=bool)
    nearest, similarity = _nearest_strangers(everyone, truth)
    for a in np.argsort(-similarity).tolist():
        b = int(nearest[a])
        if free[a] and free[b] and len(pairs) < TWINS:
            free[[a, b]] = False
            photos[b] = photos[a]
            pairs.append((a, b))
    faces = Faces(everyone.ids, everyone.embeddings, everyone.quality, photos)
    people = People.none(policy, faces)
    order = np.random.default_rng(0).permutation(len(truth))[photos]  # whole photos come together
    for rows in np.array_split(np.argsort(order, kind="stable"), 5):
        people.night(faces.take(rows))
    return len(pairs), sum(bool(people.identities[a] == people.identities[b] != NOBODY) for a, b in pairs)


def _nearest_strangers(everyone: Faces, truth: Ints, block: int = 1024) -> tuple[Ints, NDArray[np.float32]]:
    """For every face the most similar one of somebody else, and how similar it is."""
    nearest, similarity = np.empty(len(everyone), np.int64), np.empty(len(everyone), np.float32)
    for start in range(0, len(everyone), block):
        part = slice(start, start + block)
        products = everyone.embeddings[part] @ everyone.embeddings.T
        products[truth[part, None] == truth] = -1
        nearest[part], similarity[part] = products.argmax(axis=1), products.max(axis=1)
    return nearest, similarity


def _by_name(images: Path) -> dict[str, str]:
    if images.is_dir():
        names = [path.relative_to(images).as_posix() for path in images.rglob("*") if path.is_file()]
    else:
        with open_tar(images) as archive:
            names = [member.name.removeprefix("./") for member in archive if member.isfile()]
    pictures = sorted(name for name in names if is_image_name(name))
    return {name: _person(PurePosixPath(name)) for name in pictures}


def _person(name: PurePosixPath) -> str:
    return str(name.parent) if name.parent != PurePosixPath(".") else name.stem.rpartition("_")[0] or name.stem


def _by_table(labels: Path) -> dict[str, str]:
    table = read_table(labels)
    if "person" not in table.columns:
        raise UnusableLabels(f"{labels}: no column person: it says who is in a picture")
    people = table.columns["person"]
    if "" in people:
        raise UnusableLabels(f"{labels}, line {table.lines[people.index('')]}: no person is named")
    return dict(zip(table.names, people, strict=True))
