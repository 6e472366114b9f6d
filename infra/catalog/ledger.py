"""Closing the books of a run: duplicates settled, leftovers of replaced photos removed, and the audit."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, literal, not_, or_, select, update
from sqlalchemy.orm import Session

from infra.catalog.faces import Contract, crop_keys
from infra.catalog.identities import inheritance
from infra.catalog.tables.schema import (
    Attribute,
    Content,
    ContentStatus,
    Embedding,
    Face,
    Failure,
    Image,
    ImageStatus,
    Run,
    RunStatus,
    now,
)
from infra.catalog.work.failures import FailureRecord
from infra.catalog.work.key_range import EVERY_KEY, KeyRange


def settle(session: Session, run_id: int, collection_id: int, recipe: str, place: str) -> Counter[str]:
    """Give images that share another's bytes that one's fate: done, or failed for the same reason; returns how many failed why.

    Photos that were written anew get what was known of their faces (`inheritance.py`).
    `place` is where the collection lies: a key behind it makes the full path or URL that a failure's message names.
    """
    waiting = and_(Image.collection_id == collection_id, Image.status == ImageStatus.PENDING.value)
    of_this_recipe = and_(Content.id == Image.content_id, Content.recipe == recipe)
    done = exists().where(of_this_recipe, Content.status == ContentStatus.DONE.value)
    tonight = or_(Content.run_id == run_id, Image.run_id == run_id)  # by this run, or by one beside it on other keys
    failed = and_(of_this_recipe, Content.status == ContentStatus.FAILED.value, tonight)
    settled = select(Image.id).where(waiting, or_(done, exists().where(failed)))
    session.execute(
        update(Failure).where(Failure.resolved_at.is_(None), Failure.image_id.in_(settled)).values(resolved_at=now())
    )
    session.execute(
        update(Image)
        .where(waiting, done)
        .values(status=ImageStatus.DONE.value, recipe=recipe, retryable=False, run_id=run_id)
    )
    why = select(Content.failure_stage, Content.failure_reason, func.count()).where(waiting, failed)
    by_reason = session.execute(why.group_by(Content.failure_stage, Content.failure_reason)).tuples()
    failures = Counter({f"{stage}: {reason}": count for stage, reason, count in by_reason})
    columns = ["run_id", "collection_id", "image_id", "key", "stage", "reason", "message", "retryable", "failed_at"]
    session.execute(
        insert(Failure).from_select(
            columns,
            select(
                literal(run_id),
                Image.collection_id,
                Image.id,
                Image.key,
                Content.failure_stage,
                Content.failure_reason,
                literal(place) + Image.key + ": " + Content.failure_message,
                Content.failure_retryable,
                literal(now(), type_=Failure.failed_at.type),
            ).where(waiting, failed),
        )
    )
    retryable = select(Content.failure_retryable).where(Content.id == Image.content_id).scalar_subquery()
    session.execute(
        update(Image)
        .where(waiting, exists().where(failed))
        .values(status=ImageStatus.FAILED.value, recipe=recipe, retryable=retryable, run_id=run_id)
    )
    inheritance.succeed(session, collection_id)
    return failures


def fail_contents(session: Session, failures: Mapping[int, FailureRecord]) -> None:
    """Note by content id that these bytes could not be processed, under whatever key they come.

    The image holds these bytes now, so that faces of a photo that it replaced are no longer seen. They are kept all the same:
    a half-copied file is whole again a night later.
    """
    for content_id, failure in failures.items():
        session.execute(update(Image).where(Image.id == failure.image_id).values(content_id=content_id))
        session.execute(
            update(Content)
            .where(Content.id == content_id)
            .values(
                status=ContentStatus.FAILED.value,
                failure_stage=failure.stage,
                failure_reason=failure.reason,
                failure_message=failure.message,
                failure_retryable=failure.retryable,
            )
        )


def prune(session: Session, collection_id: int) -> list[str]:
    """Remove contents that no key holds any more (their photo was replaced); returns the crop objects to delete.

    What a key held before it broke stays until the key holds a picture again.
    """
    orphan = and_(
        Content.collection_id == collection_id,
        not_(exists().where(Image.content_id == Content.id)),
        not_(exists().where(Image.former_content_id == Content.id)),
    )
    ids = select(Content.id).where(orphan)
    keys = crop_keys(session, ids)
    session.execute(delete(Content).where(Content.id.in_(ids)))
    return sorted(keys)


@dataclass(frozen=True)
class Audit:
    """What the catalog can prove about a collection after a run; `problems` is empty when all holds."""

    images: dict[str, int]
    faces: int
    problems: tuple[str, ...]


def audit(
    session: Session, collection_id: int, contract: Contract, attributes: int, keys: KeyRange = EVERY_KEY
) -> Audit:
    """Prove that every image is accounted for and that every face has all that the recipe promises.

    `attributes` is the number of estimates that each face must have. Images are those of `keys`; one that shares its bytes
    with an image that another run has in hand is that run's to close.
    """
    mine = and_(Image.collection_id == collection_id, keys.holds(Image.key))
    by_status = select(Image.status, func.count()).where(mine).group_by(Image.status)
    images = dict(session.execute(by_status).tuples().all())
    faces = (
        select(func.count(Face.id))
        .join(Content, Content.id == Face.content_id)
        .where(Content.collection_id == collection_id, Content.status == ContentStatus.DONE.value)
    )
    in_recipe = Content.recipe == contract.recipe

    def images_where(*conditions: ColumnElement[bool]) -> int:
        return session.scalar(select(func.count(Image.id)).where(mine, *conditions)) or 0

    described = (
        select(func.count())
        .select_from(Attribute)
        .where(Attribute.face_id == Face.id, Attribute.model_version_id.in_(contract.describer_ids))
        .correlate(Face)
        .scalar_subquery()
    )
    done_content = exists().where(Content.id == Image.content_id, Content.status == ContentStatus.DONE.value, in_recipe)
    in_hand = exists().where(
        Content.id == Image.content_id,
        Content.status == ContentStatus.CLAIMED.value,
        Run.id == Content.run_id,
        Run.status == RunStatus.RUNNING.value,
    )
    reason = exists().where(Failure.image_id == Image.id, Failure.resolved_at.is_(None))
    embedded = exists().where(Embedding.face_id == Face.id, Embedding.model_version_id == contract.embedder_id)
    checks = {
        "images done without processed content": images_where(
            Image.status == ImageStatus.DONE.value, not_(done_content)
        ),
        "images failed without a reason": images_where(Image.status == ImageStatus.FAILED.value, not_(reason)),
        "images left pending": images_where(Image.status == ImageStatus.PENDING.value, not_(in_hand)),
        "faces without an embedding at the champion's contract": session.scalar(
            faces.where(in_recipe, not_(embedded), Face.embeddings_expired_at.is_(None))
        ),
        "faces without all their attributes": session.scalar(faces.where(in_recipe, described != attributes)),
        "faces of another detector version": session.scalar(
            faces.where(in_recipe, Face.detector_id != contract.detector_id)
        ),
    }
    return Audit(
        images=images,
        faces=session.scalar(faces) or 0,
        problems=tuple(f"{count} {what}" for what, count in checks.items() if count),
    )
