"""Group: new faces join the people already known or found new ones; what is only likely is proposed to a person."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from infra.catalog.database import Catalog
from infra.catalog.identities import enforcement, people
from infra.catalog.identities.people import FaceVectors
from infra.catalog.search.neighbours import HALF_ERROR
from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.patience import patient
from infra.settings import Settings
from tasks.calibration import calibration_of
from tasks.identities.grouping import NOBODY, PEOPLE, Exemplars, Faces, Grouping, Policy, group, nearest_people
from tasks.identities.hubness import COHORT
from tasks.job import Job
from tasks.search_index import open_index

BLOCK = 4_000  # faces grouped at once: time grows with the square of how many of them are one person
KNOWN_AT_ONCE = 50_000  # exemplars up to which comparing with all of them is faster than asking an index
# How many faces of the catalog are looked at for each new one, how many people among them are enough, and with what part of a
# search's effort: a quarter finds whoever is nearest, and of the second nearest 96 in 100 among a million. More are looked
# at where one person fills all places, and many more where other new faces do.
CANDIDATES = ((16, PEOPLE, 0.25), (128, 1, 1.0), (1_024, 1, 1.0))


@dataclass(frozen=True)
class Grouped:
    """What a run's grouping did; `calibrated` is false where nothing could be done for want of thresholds."""

    grouped: int = 0
    founded: int = 0
    alone: int = 0
    merged: int = 0
    proposed: int = 0
    calibrated: bool = True


def group_new_faces(catalog: Catalog, job: Job) -> Grouped:
    """Place every face that has no place yet, under the run's embedding version. A repeated call finds nothing left to do."""
    return group_version(catalog, job.contract.embedder_id, job.run_id, job.settings)


def group_version(catalog: Catalog, version_id: int, run_id: int, settings: Settings | None = None) -> Grouped:
    """Place every face that has no place yet under an embedding version.

    What people decided goes first: their persons are carried over, and nothing is grouped against a decision. `settings` tell
    where a large catalog's search index is kept.
    """
    with catalog.read() as session:
        version = session.get_one(ModelVersionRow, version_id)
        calibration = calibration_of(version)
    if calibration is None:
        return Grouped(calibrated=False)
    policy = Policy.of(calibration)
    total = Grouped()
    with catalog.write() as session:
        exclusive(session, enforcement.PEOPLE)
        enforcement.carry_over(session, version_id)
    while (block := _group_block(catalog, version, run_id, policy, settings)) is not None:
        total = Grouped(
            grouped=total.grouped + block.grouped,
            founded=total.founded + block.founded,
            alone=total.alone + block.alone,
            merged=total.merged + block.merged,
            proposed=total.proposed + block.proposed,
        )
    return total


@patient
def _group_block(
    catalog: Catalog, version: ModelVersionRow, run_id: int, policy: Policy, settings: Settings | None
) -> Grouped | None:
    """Place the next faces in one transaction, anew if it fails; None if all have their place."""
    with catalog.write() as session:
        exclusive(session, enforcement.PEOPLE)
        dimension = version.dimension or 0
        new = people.ungrouped(session, version.id, dimension, BLOCK)
        if not len(new):
            people.remove_empty_identities(session)
            enforcement.drop_stale_proposals(session)
            return None
        known = _known(session, version, new, policy, settings)
        result = group(
            _faces(new),
            Exemplars(_faces(known), known.identities),
            policy,
            next_identity=people.next_identity(session),
            cohort=people.representatives(session, version.id, dimension, COHORT),
            seen_together=partial(_apart, session),
            settled=np.array(people.settled_identities(session, np.unique(known.identities).tolist()), np.int64),
            cannot_link=_barred(session, version.id, new, known),
        )
        _write(session, version.id, run_id, new, known, result)
    return Grouped(
        grouped=int((result.identities != NOBODY).sum()),
        founded=len(result.founded),
        alone=int((result.identities == NOBODY).sum()),
        merged=len(result.merges),
        proposed=len(result.proposals),
    )


def _known(
    session: people.Session, version: ModelVersionRow, new: FaceVectors, policy: Policy, settings: Settings | None
) -> FaceVectors:
    """The faces that stand for people known so far: all, or, where they are many, of those whom new faces resemble most.

    Then the search index tells who that is, so that a night costs what is new and not what is there. What `group` makes of
    them is the same, but for what the index misses, and for who lies behind a person's 128 nearest faces.
    """
    dimension = version.dimension or 0
    if people.count_exemplars(session, version.id, KNOWN_AT_ONCE + 1) <= KNOWN_AT_ONCE:
        return people.exemplars(session, version.id, dimension)
    index = open_index(session, version, settings)
    known: set[int] = set()
    waiting = np.arange(len(new))
    for count, enough, effort in CANDIDATES:
        faces, similarities = index.scan(session, new.embeddings[waiting], count, effort, bounded=True)
        alike = (faces >= 0) & (similarities >= policy.propose - HALF_ERROR)
        row, column = np.nonzero(alike)
        candidates, place = np.unique(faces[alike], return_inverse=True)
        belongs = people.identities_of(session, version.id, candidates.tolist())
        identities = np.array([belongs.get(face, NOBODY) for face in candidates.tolist()], np.int64)[place]
        # Half precision may have swapped whoever is about as near as the last.
        chosen = nearest_people(row, identities, similarities[row, column], PEOPLE, 2 * HALF_ERROR)
        known.update(identities[chosen].tolist())
        found = np.bincount(row[chosen], minlength=len(waiting))
        waiting = waiting[(found < enough) & alike[:, -1:].any(axis=1)]
        if not len(waiting):
            break
    return people.exemplars_of(session, version.id, dimension, known)


def _apart(session: people.Session, identities: np.ndarray) -> np.ndarray:
    """Pairs of identities that a photo shows side by side, or that a decision keeps apart."""
    decided = np.array(enforcement.kept_apart(session, identities.tolist()), np.int64).reshape(-1, 2)
    return np.concatenate([people.seen_together(session, identities.tolist()), decided])


def _barred(session: people.Session, version_id: int, new: FaceVectors, known: FaceVectors) -> np.ndarray:
    """Pairs (face, exemplar of an identity) that must not come together."""
    speaker = dict(zip(known.identities.tolist(), known.ids.tolist(), strict=True))
    barred = enforcement.barred(session, version_id, new.ids.tolist())
    pairs = [(face, speaker[identity]) for face, identity in barred if identity in speaker]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _faces(vectors: FaceVectors) -> Faces:
    return Faces(vectors.ids, vectors.embeddings, vectors.quality, vectors.contents)


def _write(
    session: people.Session, version_id: int, run_id: int, new: FaceVectors, known: FaceVectors, result: Grouping
) -> None:
    absorbed = [merge.absorbed for merge in result.merges]
    changed = np.union1d(result.exemplars.identities, np.array(absorbed, np.int64))
    former, standing = known.ids[np.isin(known.identities, changed)], result.exemplars.faces.ids
    people.write_grouping(
        session,
        run_id,
        version_id,
        {
            int(face): None if identity == NOBODY else int(identity)
            for face, identity in zip(new.ids, result.identities, strict=True)
        },
        merges=[(merge.absorbed, merge.kept) for merge in result.merges],
        no_exemplars_now=np.setdiff1d(former, standing).tolist(),
        new_exemplars=np.setdiff1d(standing, former).tolist(),
    )
    people.write_proposals(
        session,
        run_id,
        [(m.kept, m.absorbed, int(a), int(b), float(s)) for m in result.proposals for a, b, s in m.evidence[:1]],
    )
