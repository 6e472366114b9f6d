"""Upgrades in the catalog: which faces still lack an embedding, in which order they are made, and the switch itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, and_, case, delete, exists, func, not_, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from infra.catalog.search.vectors import index_name, put_embeddings
from infra.catalog.statements import upsert
from infra.catalog.tables.people import DecidedMove
from infra.catalog.tables.schema import (
    Collection as CollectionRow,
)
from infra.catalog.tables.schema import (
    Content,
    ContentStatus,
    Embedding,
    Face,
    FaceIdentity,
    Identity,
    Image,
    ImageStatus,
    MergeProposal,
    ModelVersion,
    UngroupedFace,
    now,
)
from infra.catalog.tables.upgrades import BackfillFailure, Upgrade, UpgradeStatus
from infra.catalog.visibility import visible

# What changes of the serving version, and openings of runs, take turns at (`exclusive`). Whoever wants `PEOPLE` or the rows of
# runs as well takes this first, then `PEOPLE`, then the rows: in another order, two would wait for each other.
SERVING = "serving"


@dataclass(frozen=True)
class FaceToEmbed:
    """A face that lacks an embedding. `key` and what follows it are of a photo that shows it; None if there is none left."""

    face_id: int
    content_id: int
    sha256: str
    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    crop_key: str
    collection_uri: str
    key: str | None
    etag: str | None


def latest(session: Session) -> Upgrade | None:
    """The upgrade that was planned last and not refused."""
    planned = select(Upgrade).where(Upgrade.status != UpgradeStatus.REFUSED.value)
    return session.scalar(planned.order_by(Upgrade.id.desc()).limit(1))


def settle(session: Session, model_version_id: int | None = None) -> None:
    """Note that upgrades which are under way or in force are over: all, or those from or to a version."""
    _close(session, UpgradeStatus.SETTLED, model_version_id)


def end(session: Session) -> None:
    """Note that the settings decide again which version is at work, not the upgrades."""
    _close(session, UpgradeStatus.ENDED)


def _close(session: Session, status: UpgradeStatus, model_version_id: int | None = None) -> None:
    over = [UpgradeStatus.REFUSED.value, UpgradeStatus.ENDED.value, status.value]
    statement = update(Upgrade).where(Upgrade.status.not_in(over))
    if model_version_id is not None:
        pair = or_(Upgrade.former_id == model_version_id, Upgrade.target_id == model_version_id)
        statement = statement.where(pair)
    session.execute(statement.values(status=status.value, ended_at=now()))


def lacks(model_version_id: int) -> ColumnElement[bool]:
    """That a face has no embedding of a version, and may have one."""
    embedded = exists().where(Embedding.face_id == Face.id, Embedding.model_version_id == model_version_id)
    return and_(not_(embedded), Face.embeddings_expired_at.is_(None))


def count_faces(session: Session) -> int:
    """How many faces may have embeddings."""
    return session.scalar(select(func.count(Face.id)).where(Face.embeddings_expired_at.is_(None))) or 0


def count_lacking(session: Session, model_version_id: int, upgrade_id: int | None = None) -> int:
    """How many faces lack a version's embedding; without those that were given up in a backfill, if one is named."""
    statement = select(func.count(Face.id)).where(lacks(model_version_id))
    if upgrade_id is not None:
        statement = statement.where(_not_given_up(upgrade_id))
    return session.scalar(statement) or 0


def count_visible_lacking(session: Session, model_version_id: int) -> int:
    """How many of the faces that can be found lack a version's embedding."""
    return session.scalar(select(func.count(Face.id)).where(lacks(model_version_id), visible())) or 0


def count_given_up(session: Session, upgrade_id: int) -> int:
    return session.scalar(select(func.count()).where(BackfillFailure.upgrade_id == upgrade_id)) or 0


def _not_given_up(upgrade_id: int) -> ColumnElement[bool]:
    return not_(exists().where(BackfillFailure.upgrade_id == upgrade_id, BackfillFailure.face_id == Face.id))


def contents_to_embed(session: Session, upgrade: Upgrade) -> np.ndarray:
    """Contents (N,) int64 with faces that lack the target's embedding, in the order of most use.

    First the photos of people about whom somebody decided something (named them, above all), then those of known people, the
    most frequent first, then faces that are alone, and at last photos that have left their collection.
    """
    former = upgrade.former_id
    sizes = (
        select(FaceIdentity.identity_id.label("id"), func.count().label("faces"))
        .where(FaceIdentity.model_version_id == former, FaceIdentity.identity_id.is_not(None))
        .group_by(FaceIdentity.identity_id)
        .subquery()
    )
    decided = or_(Identity.person_id.is_not(None), Identity.name.is_not(None))
    rank = case((not_(visible()), 3), (decided, 0), (sizes.c.faces > 1, 1), else_=2)
    statement = (
        select(Face.content_id)
        .outerjoin(FaceIdentity, (FaceIdentity.face_id == Face.id) & (FaceIdentity.model_version_id == former))
        .outerjoin(Identity, Identity.id == FaceIdentity.identity_id)
        .outerjoin(sizes, sizes.c.id == FaceIdentity.identity_id)
        .where(lacks(upgrade.target_id), _not_given_up(upgrade.id))
        .group_by(Face.content_id)
        .order_by(func.min(rank), func.max(func.coalesce(sizes.c.faces, 0)).desc(), Face.content_id)
    )
    return np.fromiter(session.scalars(statement), np.int64)


def faces_to_embed(session: Session, upgrade: Upgrade, contents: Iterable[int]) -> list[FaceToEmbed]:
    """The faces of some contents that lack the target's embedding, photo by photo."""
    key = (
        select(func.min(Image.id))
        .where(Image.content_id == Content.id, Image.status != ImageStatus.MISSING.value)
        .correlate(Content)
        .scalar_subquery()
    )
    statement = (
        select(Face, Content.sha256, CollectionRow.uri, Image.key, Image.etag)
        .join(Content, Content.id == Face.content_id)
        .join(CollectionRow, CollectionRow.id == Content.collection_id)
        .outerjoin(Image, Image.id == key)
        .where(Face.content_id.in_(list(contents)), lacks(upgrade.target_id), _not_given_up(upgrade.id))
        .order_by(Face.content_id, Face.ordinal)
    )
    return [
        FaceToEmbed(
            face.id,
            face.content_id,
            sha256,
            (face.x1, face.y1, face.x2, face.y2),
            face.landmarks.reshape(5, 2),
            face.crop_key,
            uri,
            image_key,
            etag,
        )
        for face, sha256, uri, image_key, etag in session.execute(statement).tuples()
    ]


def put_backfilled(
    session: Session, upgrade: Upgrade, vectors: Mapping[int, np.ndarray], given_up: Mapping[int, str], speed: float
) -> None:
    """Write embeddings by face id, and why some could not be made; faces that are gone meanwhile are passed over."""
    asked = [*vectors, *given_up]
    still = select(Face.id).where(Face.id.in_(asked), lacks(upgrade.target_id)).with_for_update(key_share=True)
    there = set(session.scalars(still))
    put_embeddings(session, upgrade.target_id, {face: vector for face, vector in vectors.items() if face in there})
    rows = [
        {"upgrade_id": upgrade.id, "face_id": face, "reason": reason}
        for face, reason in given_up.items()
        if face in there
    ]
    upsert(session, BackfillFailure, rows, ["upgrade_id", "face_id"], ["reason"])
    worked = {"worked_at": now(), "faces_per_second": speed}
    session.execute(update(Upgrade).where(Upgrade.id == upgrade.id).values(**worked))


def serve(session: Session, model_version_id: int) -> None:
    """Let queries use a version from now on."""
    session.execute(update(ModelVersion).values(serving=ModelVersion.id == model_version_id))


def relabel(session: Session, collection_id: int, former: str, recipe: str, model_version_id: int) -> None:
    """Say of what was done by one recipe that it is done by another, which differs in the embedding version only.

    A photo with a face that lacks the version's embedding stays as it is: the next night does it anew.
    """
    mine = and_(Content.collection_id == collection_id, Content.recipe == former)
    incomplete = exists().where(Face.content_id == Content.id, lacks(model_version_id))
    finished = Content.status.in_([ContentStatus.DONE.value, ContentStatus.FAILED.value])
    session.execute(
        update(Content)
        .where(mine, finished, not_(incomplete))
        .values(recipe=recipe)
        .execution_options(synchronize_session=False)
    )
    done = exists().where(Content.id == Image.content_id, Content.recipe == recipe)
    session.execute(
        update(Image)
        .where(
            Image.collection_id == collection_id,
            Image.recipe == former,
            or_(Image.status == ImageStatus.FAILED.value, and_(Image.status == ImageStatus.DONE.value, done)),
        )
        .values(recipe=recipe)
        .execution_options(synchronize_session=False)
    )


def count_ungrouped(session: Session, model_version_id: int) -> int:
    """How many embeddings of a version have not been grouped."""
    return session.scalar(select(func.count()).where(UngroupedFace.model_version_id == model_version_id)) or 0


def faces_with_both(session: Session, upgrade: Upgrade, at_most: int) -> np.ndarray:
    """Ids (N,) int64 of faces that have both versions' embeddings, spread over the catalog."""
    former, target = aliased(Embedding), aliased(Embedding)
    both = (
        select(target.face_id)
        .join(former, former.face_id == target.face_id)
        .where(target.model_version_id == upgrade.target_id, former.model_version_id == upgrade.former_id)
        # Neighbouring ids are faces of one event: a multiplier of the golden ratio's bits scatters them, always alike.
        .order_by((target.face_id * 2654435761) % 4294967296, target.face_id)
        .limit(at_most)
    )
    return np.sort(np.fromiter(session.scalars(both), np.int64))


def visible_faces(session: Session, after: int, limit: int) -> np.ndarray:
    """Ids (N,) int64 of the next faces behind an id that can be found."""
    statement = select(Face.id).where(Face.id > after, visible()).order_by(Face.id).limit(limit)
    return np.fromiter(session.scalars(statement), np.int64)


def delete_version(session: Session, model_version_id: int) -> dict[str, int]:
    """Delete what an embedding version has made: vectors, identities, memberships, proposals. Returns rows by table."""
    identities = select(Identity.id).where(Identity.model_version_id == model_version_id)
    proposals = or_(MergeProposal.identity_a_id.in_(identities), MergeProposal.identity_b_id.in_(identities))
    counts = {}
    for entity, condition in (
        (MergeProposal, proposals),
        (DecidedMove, DecidedMove.model_version_id == model_version_id),
        (FaceIdentity, FaceIdentity.model_version_id == model_version_id),
        (Identity, Identity.model_version_id == model_version_id),
        (Embedding, Embedding.model_version_id == model_version_id),
    ):
        done = session.execute(delete(entity).where(condition).execution_options(synchronize_session=False))
        counts[entity.__tablename__] = done.rowcount  # type: ignore[attr-defined]
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"DROP INDEX IF EXISTS {index_name(model_version_id)}"))
    return counts
