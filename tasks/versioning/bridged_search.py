"""Search across two embedding versions while a backfill runs: by the newer one, older vectors seen through the bridge.

Everybody else's queries stay with the version that serves. This one shows what the newer version will answer, before it is
complete, and says of every match whether it is the version's own or the bridge's.
"""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from infra.catalog.queries.views import FaceView, faces_by_id
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.versioning import upgrades
from infra.settings import Settings
from tasks.calibration import calibration_of
from tasks.search import Photo, probe
from tasks.versioning.bridge import Measures, measures_of, nearest_across
from tasks.versioning.upgrade import under_way


@dataclass(frozen=True)
class BridgedMatch:
    """A face that resembles the one looked for. `bridged`: by its older vector, carried over; such a similarity is not
    calibrated, and has no probability."""

    face: FaceView
    similarity: float
    probability: float | None
    bridged: bool


@dataclass(frozen=True)
class BridgedAnswer:
    """The matches of one face of the photo, most similar first. `unseen`: faces that neither version nor bridge shows."""

    box: tuple[float, ...]
    score: float
    matches: tuple[BridgedMatch, ...]
    model: str
    method: str
    unseen: int
    bridge: Measures | None


def search_across(session: Session, settings: Settings, photo: Photo, limit: int) -> list[BridgedAnswer]:
    """Find for every face in a photo the most similar ones of the catalog, by the version to come. The photo is not kept.

    Raises:
        NoUpgrade: if no backfill is under way.
        NothingToSearch: if there is no face in the photo.
        UnreadablePhoto: if the file is no picture that can be read.
        NotInstalled: if the version is not on this machine.
    """
    upgrade = under_way(session)
    target = session.get_one(ModelVersionRow, upgrade.target_id)
    former = session.get_one(ModelVersionRow, upgrade.former_id)
    probed = probe(settings, target, photo)
    calibration = calibration_of(target)
    method = f"exact, through the bridge from {former.name}@{former.version}"
    unseen = 0
    if upgrade.bridge is None:
        method, unseen = "exact, no bridge yet", upgrades.count_visible_lacking(session, target.id)
    answers = []
    for box, score, vector in zip(probed.boxes, probed.scores, probed.vectors, strict=True):
        found = nearest_across(session, upgrade, vector, limit)
        views = faces_by_id(session, found.ids.tolist(), former.id)
        matches = tuple(
            BridgedMatch(
                views[face],
                similarity,
                None if bridged or calibration is None else float(calibration.probability(similarity)),
                bridged,
            )
            for face, similarity, bridged in zip(
                found.ids.tolist(), found.similarities.tolist(), found.bridged.tolist(), strict=True
            )
        )
        place = tuple(float(v) for v in box)
        reference = f"{target.name}@{target.version}"
        answers.append(BridgedAnswer(place, float(score), matches, reference, method, unseen, measures_of(upgrade)))
    return answers
