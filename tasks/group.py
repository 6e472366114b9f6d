"""Group: new faces join the people already known or found new ones; what is only likely is proposed to a person."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from infra.catalog import people
from infra.catalog.database import Catalog, exclusive
from infra.catalog.people import FaceVectors
from infra.catalog.schema import ModelVersion as ModelVersionRow
from tasks.calibration import Calibration
from tasks.grouping import NOBODY, Exemplars, Faces, Grouping, Policy, group
from tasks.job import Job

BLOCK = 4_000  # faces grouped at once: time grows with the square of how many of them are one person


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
    version_id, dimension = job.contract.embedder_id, job.recipe.embedder.spec.dimension or 0
    with catalog.read() as session:
        version = session.get_one(ModelVersionRow, version_id)
        calibration = version.calibration
    if calibration is None:
        return Grouped(calibrated=False)
    policy = Policy.of(Calibration.model_validate(calibration))
    total = Grouped()
    while True:
        with catalog.write() as session:
            exclusive(session, "grouping")  # runs on two collections found people with ids of their own
            new = people.ungrouped(session, version_id, dimension, BLOCK)
            if not len(new):
                people.remove_empty_identities(session)
                return total
            known = people.exemplars(session, version_id, dimension)
            result = group(
                _faces(new),
                Exemplars(_faces(known), known.identities),
                policy,
                next_identity=people.next_identity_id(session),
                seen_together=partial(_together, session),
                settled=np.array(people.settled_identities(session, version_id), np.int64),
            )
            _write(session, job, new, known, result)
        total = Grouped(
            grouped=total.grouped + int((result.identities != NOBODY).sum()),
            founded=total.founded + len(result.founded),
            alone=total.alone + int((result.identities == NOBODY).sum()),
            merged=total.merged + len(result.merges),
            proposed=total.proposed + len(result.proposals),
        )


def _together(session: people.Session, identities: np.ndarray) -> np.ndarray:
    return people.seen_together(session, identities.tolist())


def _faces(vectors: FaceVectors) -> Faces:
    return Faces(vectors.ids, vectors.embeddings, vectors.quality, vectors.contents)


def _write(session: people.Session, job: Job, new: FaceVectors, known: FaceVectors, result: Grouping) -> None:
    absorbed = [merge.absorbed for merge in result.merges]
    changed = np.union1d(result.exemplars.identities, np.array(absorbed, np.int64))
    people.write_grouping(
        session,
        job.run_id,
        job.contract.embedder_id,
        {
            int(face): None if identity == NOBODY else int(identity)
            for face, identity in zip(new.ids, result.identities, strict=True)
        },
        merges=[(merge.absorbed, merge.kept) for merge in result.merges],
        former_exemplars=known.ids[np.isin(known.identities, changed)].tolist(),
        exemplars=result.exemplars.faces.ids.tolist(),
    )
    people.write_proposals(
        session,
        job.run_id,
        [(m.kept, m.absorbed, int(a), int(b), float(s)) for m in result.proposals for a, b, s in m.evidence[:1]],
    )
