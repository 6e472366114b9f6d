"""Erase: what the catalog knows of a face, a person or a photograph goes, everywhere, and does not come back.

First a plan says what would go. Carried out, its rows go in one transaction that also leaves errands in an outbox
(`errands.py`): crops, restored pictures, thumbnails, the search index, reports of runs, pages and exports to delete, and the
database's files to scrub. What must not return is kept as keyed hashes of bytes, never as a vector. Photographs in the store of
their owner are not ours, and stay.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog.custody import audit, erasing, exhibits, places
from infra.catalog.database import Catalog
from infra.catalog.identities import decisions as stored
from infra.catalog.identities import enforcement
from infra.catalog.identities.decisions import UnknownSubject
from infra.catalog.search.vectors import stored_vectors
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import Errand, Keeps
from infra.catalog.tables.people import Person
from infra.catalog.tables.schema import Collection as CollectionRow
from infra.catalog.tables.schema import Erasure, Identity, Image, ModelVersion
from infra.catalog.versioning.versions import serving
from infra.catalog.work.runs import close_dead_runs, let_none_begin
from infra.settings import Settings
from infra.words import count
from tasks.calibration import calibration_of
from tasks.custody.errands import Finished, finish
from tasks.nights.run_report import REVEALING

STAYS = (
    "The photographs themselves lie in the store of their owner: Visage never deletes them there. Remove them yourself."
)
NEW_PHOTOS = (
    "No vector is kept, so the person cannot be recognised in photographs that come later: those are taken in like any "
    "stranger's. Keep them out of the store, or erase again."
)
NO_FACE = "No face of this person is left, nor where there were some: reports, pages and exports of all collections go."
NEIGHBOURS = "Crops of other faces in the same photographs stay, and may show a part of an erased one at their edge."


class CannotErase(ValueError):
    """The erasure cannot be done now, or not as asked; the message says what to do."""


@dataclass(frozen=True)
class Plan:
    """What would be erased. `keys`: the photographs that show it, as COLLECTION/KEY. `counts`: rows and files by kind.

    `exhibits`: pages, exports and archives that may show it, as paths. `persons`: who is meant, by their roots.
    """

    kind: str
    faces: tuple[int, ...]
    image_ids: tuple[int, ...]
    collection_ids: tuple[int, ...]
    keys: tuple[str, ...]
    counts: dict[str, int]
    exhibits: tuple[str, ...]
    notes: tuple[str, ...]
    similarities: dict[int, float]
    persons: tuple[int, ...] = ()


@dataclass(frozen=True)
class Certificate:
    """Proof that something was erased, without biometric content. `completed_at` is None while errands are open.

    `waits_for`: home folders, with their machines, whose own processes have files to remove.
    """

    erasure_id: int
    kind: str
    reason: str
    who: str
    counts: dict[str, Any]
    requested_at: datetime
    completed_at: datetime | None
    waits_for: tuple[str, ...] = ()


def plan_faces(session: Session, face_ids: Collection[int], kind: str = "face") -> Plan:
    """What erasing some faces would take.

    Raises:
        UnknownSubject: naming faces that are not there.
    """
    stored.check_faces(session, face_ids)
    found = erasing.regions(session, face_ids)
    images = erasing.images_of(session, {region.content_id for region in found})
    collections = sorted({region.collection_id for region in found})
    return Plan(
        kind=kind,
        faces=tuple(sorted(face_ids)),
        image_ids=(),
        collection_ids=tuple(collections),
        keys=_keys(session, images),
        counts=counts_of(session, face_ids, collections),
        exhibits=exhibits_of(session, collections),
        notes=(STAYS, NEW_PHOTOS, NEIGHBOURS),
        similarities={},
    )


def plan_identity(session: Session, identity_id: int) -> Plan:
    """What erasing a person would take: all faces of the identity, and of what stands for the person under other versions.

    The name and what was decided go with them, also if no face is left.

    Raises:
        UnknownSubject: if there is no such identity.
        CannotErase: if it has no faces, and nobody decided anything about it.
    """
    person_id = stored.identity(session, identity_id).person_id
    if person_id is None:
        if members := stored.members(session, identity_id):
            return plan_faces(session, members, "identity")
        raise CannotErase(f"identity {identity_id} has no faces; there is nothing to erase")
    root = session.get_one(Person, person_id).root_id or person_id
    persons, faces = _of_person(session, root)
    plan = plan_faces(session, faces, "identity") if faces else _plan_name(session)
    return replace(plan, persons=(root,), counts={"person": len(persons), **plan.counts})


def _of_person(session: Session, root: int) -> tuple[list[int], set[int]]:
    """Everybody who turned out to be a person, and all their faces under any version."""
    persons = stored.family(session, root)
    identities = session.scalars(select(Identity.id).where(Identity.person_id.in_(persons)))
    shown = {face for identity in identities for face in stored.members(session, identity)}
    return persons, shown | set(stored.confirmed_as(session, persons))


def _plan_name(session: Session) -> Plan:
    """What erasing a person of whom no face is left would take besides: whatever may show them, in any collection."""
    collections = tuple(session.scalars(select(CollectionRow.id).order_by(CollectionRow.id)))
    return Plan(
        kind="identity",
        faces=(),
        image_ids=(),
        collection_ids=collections,
        keys=(),
        counts=counts_of(session, (), collections),
        exhibits=exhibits_of(session, collections),
        notes=(NO_FACE,),
        similarities={},
    )


def plan_image(session: Session, key: str, collection: str | None = None) -> Plan:
    """What erasing a photograph would take: its faces, and all objects of the collection that hold the same bytes.

    Raises:
        UnknownSubject: if the catalog knows no such key.
        CannotErase: if several collections have it and none is named.
    """
    statement = select(Image).join(CollectionRow, CollectionRow.id == Image.collection_id).where(Image.key == key)
    if collection is not None:
        statement = statement.where(CollectionRow.name == collection)
    found = list(session.scalars(statement))
    if not found:
        where = "any collection" if collection is None else f"the collection {collection!r}"
        raise UnknownSubject(f"{where} has no image with the key {key!r}; keys are paths inside the collection")
    if len(found) > 1:
        raise CannotErase(f"{key!r} is in {len(found)} collections; name the one that is meant with --collection")
    contents = erasing.contents_of(found)
    images = erasing.images_of(session, contents) or found
    faces = erasing.faces_in(session, contents)
    return Plan(
        kind="image",
        faces=tuple(faces),
        image_ids=tuple(image.id for image in images),
        collection_ids=(found[0].collection_id,),
        keys=_keys(session, images),
        counts={"images": len(images), **counts_of(session, faces, [found[0].collection_id])},
        exhibits=exhibits_of(session, [found[0].collection_id]),
        notes=(STAYS,),
        similarities={},
    )


def plan_photo(session: Session, settings: Settings, photo: Path, least: float | None = None) -> Plan:
    """What erasing the person in a photo would take: every face at least so similar to the one in it, exactly searched.

    Without `least`: from the similarity that one in a thousand pairs of strangers reaches.

    Raises:
        CannotErase: if the photo shows several faces, nothing is similar, or there is no threshold.
        UnreadablePhoto, NothingToSearch, NotInstalled: as searching does.
    """
    from tasks.probe import Prober  # noqa: PLC0415 - imports torch

    version, least = meant_from(session, least)
    probed = Prober(settings)(photo.read_bytes(), version)
    if len(probed.vectors) != 1:
        raise CannotErase(
            f"{photo}: {count(len(probed.vectors), 'face is', 'faces are')} in this photo; cut out the one that is meant"
        )
    [plan] = plan_alike(session, version, probed.vectors, least)
    if plan is None:
        raise CannotErase(f"{photo}: no face of the catalog is similar to {least:.3f} or more; nothing was erased")
    return plan


def meant_from(session: Session, least: float | None = None) -> tuple[ModelVersion, float]:
    """The version to compare by, and from which similarity on a face is meant: `least`, else by the calibration.

    Raises:
        CannotErase: if the catalog holds no embeddings, or there is no threshold.
    """
    version = serving(session)
    if version is None or version.dimension is None:
        raise CannotErase("the catalog holds no embeddings; there is nothing to find a person by")
    if least is None:
        calibration = calibration_of(version)
        if calibration is None:
            raise CannotErase("this model version is not calibrated; say from which similarity on a face is meant")
        least = calibration.thresholds.far_1e_3
    return version, least


def plan_alike(session: Session, version: ModelVersion, vectors: np.ndarray, least: float) -> list[Plan | None]:
    """For each of some faces' vectors (N, D), what erasing all that look so like it would take; None if nothing does."""
    alike: list[dict[int, float]] = [{} for _ in vectors]
    for ids, stored_ones in stored_vectors(session, version.id, version.dimension or 0):
        for found, products in zip(alike, (stored_ones @ vectors.T).T, strict=True):
            near = products >= least
            found.update(zip(ids[near].tolist(), products[near].tolist(), strict=True))
    note = f"Faces at a similarity of {least:.3f} or more are meant: look-alikes among them would go too. Look at them."
    plans: list[Plan | None] = []
    for similarities in alike:
        planned = plan_faces(session, similarities, "photo") if similarities else None
        notes = () if planned is None else (note, *planned.notes)
        plans.append(planned and replace(planned, notes=notes, similarities=similarities))
    return plans


def erase(catalog: Catalog, settings: Settings, who: str, plan: Plan, reason: str) -> tuple[Certificate, Finished]:
    """Carry a plan out: rows at once, the rest through the outbox. Call it without an open transaction.

    Raises:
        CannotErase: while a run is at work on the same collection, or if a person of the plan has more faces since, or a
            photograph more faces or copies.
        UnknownSubject: if faces of the plan are gone since.
    """
    places.enter_what_is_there(catalog, settings)
    with catalog.write() as session:
        exclusive(session, enforcement.PEOPLE)
        for collection_id in sorted(plan.collection_ids):
            let_none_begin(session, collection_id)
            if alive := close_dead_runs(session, collection_id):
                raise CannotErase(f"run {alive[0].id} is at work on this collection; wait for it, or stop it first")
        if plan.faces:
            stored.check_faces(session, plan.faces)
        for root in plan.persons:
            persons, faces = _of_person(session, root)
            if not persons or not faces <= set(plan.faces):
                raise CannotErase("more is known of this person by now than the plan says; look at it again")
        contents = erasing.contents_of(_images(session, plan.image_ids))
        copies = {image.id for image in erasing.images_of(session, contents)}
        if not copies <= set(plan.image_ids) or not set(erasing.faces_in(session, contents)) <= set(plan.faces):
            raise CannotErase("more is known of this photograph by now than the plan says; look at it again")
        erasure = Erasure(kind=plan.kind, reason=reason, who=who, counts=plan.counts)
        session.add(erasure)
        session.flush()
        leave_errands(session, erasure.id, plan)
        _forget(session, erasure.id, plan)
        audit.append(session, who, "erase", {"erasure": erasure.id, "kind": plan.kind, "counts": plan.counts})
    finished = finish(catalog, settings)
    with catalog.read() as session:
        return certificate(session, erasure.id), finished


def certificate(session: Session, erasure_id: int) -> Certificate:
    """One erasure."""
    return _certificate(session, session.get_one(Erasure, erasure_id))


def certificates(session: Session, limit: int = 50, before: int | None = None) -> list[Certificate]:
    """Erasures, the latest first."""
    return [_certificate(session, row) for row in erasing.certificates(session, limit, before)]


def leave_errands(session: Session, erasure_id: int, plan: Plan) -> None:
    """Post what is to be deleted besides the rows of a plan, which are still there."""
    found = erasing.regions(session, plan.faces)
    thumbnails = [f"thumbnails/{r.sha256[:2]}/{r.sha256}" for r in found]
    contents = erasing.contents_of(_images(session, plan.image_ids))
    thumbnails += [f"thumbnails/{sha[:2]}/{sha}" for sha in erasing.digests(session, contents)]
    places.post(session, erasure_id, Errand.OBJECT, Keeps.OBJECTS, erasing.objects_of(session, plan.faces))
    places.post(session, erasure_id, Errand.FILE, Keeps.CACHE, [*thumbnails, "index", places.TRAINED_ON])
    places.post(session, erasure_id, Errand.ARTIFACT, Keeps.REPORTS, _revealing(session, plan.collection_ids))
    exhibits.post_concerning(session, erasure_id, plan.collection_ids)
    erasing.post_scrub(session, erasure_id)


def _tracked(session: Session, collection_ids: Collection[int]) -> list[str]:
    return [run.tracking_run_id for run in erasing.runs_of(session, collection_ids) if run.tracking_run_id]


def _revealing(session: Session, collection_ids: Collection[int]) -> list[str]:
    return [f"{run}/{name}" for run in _tracked(session, collection_ids) for name in REVEALING]


def _forget(session: Session, erasure_id: int, plan: Plan) -> None:
    images = _images(session, plan.image_ids)
    for image in images:
        erasing.suppress_object(session, erasure_id, image)
    whole = erasing.contents_of(images)
    if plan.image_ids:
        for sha256 in erasing.digests(session, whole):
            erasing.suppress_content(session, erasure_id, plan.collection_ids[0], sha256)
    for region in erasing.regions(session, plan.faces):
        if region.content_id not in whole:
            erasing.suppress_content(session, erasure_id, region.collection_id, region.sha256, region.box)
    erasing.forget_faces(session, plan.faces, plan.persons)
    erasing.forget_images(session, _images(session, plan.image_ids))


def _images(session: Session, image_ids: Sequence[int]) -> list[Image]:
    return list(session.scalars(select(Image).where(Image.id.in_(image_ids)).order_by(Image.id)))


def _keys(session: Session, images: Sequence[Image]) -> tuple[str, ...]:
    names = dict(session.execute(select(CollectionRow.id, CollectionRow.name)).tuples().all())
    return tuple(f"{names[image.collection_id]}/{image.key}" for image in images)


def counts_of(session: Session, faces: Collection[int], collections: Collection[int]) -> dict[str, int]:
    """How many rows and files hang on some faces of some collections."""
    return {
        "faces": len(faces),
        **erasing.row_counts(session, faces),
        "objects": len(erasing.objects_of(session, faces)),
        "reports": len(_tracked(session, collections)),
        "exhibits": len(exhibits_of(session, collections)),
    }


def exhibits_of(session: Session, collections: Collection[int]) -> tuple[str, ...]:
    """Where files are that may show faces of some collections."""
    return tuple(sorted({exhibit.place for exhibit in exhibits.concerning(session, collections)}))


def _certificate(session: Session, row: Erasure) -> Certificate:
    waiting = () if row.completed_at else places.waiting_elsewhere(session, None, row.id)
    homes = dict.fromkeys(f"{place.folder} on {place.host}" for place in waiting)
    return Certificate(
        row.id, row.kind, row.reason, row.who, row.counts, row.requested_at, row.completed_at, tuple(homes)
    )
