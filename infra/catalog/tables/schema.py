"""Tables of the catalog (DESIGN section 4), the same for SQLite and PostgreSQL.

A collection is the boundary of consent: the bytes of a photo are processed once per collection (`content`), however many
keys (`image`) hold them. Every derived row names the model version, and so the contract, that produced it.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

UNIT_TOLERANCE = 1e-3  # what float32 and half precision leave of a unit length, with room


class ImageStatus(StrEnum):
    """Where an image stands: every listed one is in exactly one of these states."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    MISSING = "missing"


FINISHED = text("status IN ('done', 'failed')")  # written out, as the index over such images has it


class ContentStatus(StrEnum):
    """Where the processing of some bytes stands."""

    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"


class RunStatus(StrEnum):
    """How a run ended, or that it has not."""

    RUNNING = "running"
    DONE = "done"
    DONE_WITH_FAILURES = "done_with_failures"
    FAILED = "failed"
    CRASHED = "crashed"
    SKIPPED = "skipped"  # another run was at work on the collection
    MISSED = "missed"  # nothing was there to start it when its time came


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, stored as UTC; a time without zone is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Vector(TypeDecorator[np.ndarray]):
    """A float32 vector as little-endian bytes; NaN and infinity are refused."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: np.ndarray | None, dialect: Dialect) -> bytes | None:
        if value is None:
            return None
        if not np.isfinite(value).all():
            raise ValueError("a vector holds NaN or infinity: it must not reach the catalog")
        return np.ascontiguousarray(value, dtype="<f4").tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> np.ndarray | None:
        return None if value is None else np.frombuffer(value, dtype="<f4")


class UnitVector(Vector):
    """An embedding: a float32 vector of unit length; any other length is refused, zero above all.

    Sealed on its way to the database where the catalog's embeddings are encrypted (`infra.catalog.encryption`).
    """

    cache_ok = True

    def process_bind_param(self, value: np.ndarray | None, dialect: Dialect) -> bytes | None:
        stored = super().process_bind_param(value, dialect)
        if value is not None and abs(float(np.linalg.norm(value)) - 1) > UNIT_TOLERANCE:
            raise ValueError(
                f"an embedding has length {np.linalg.norm(value):.4g} instead of 1: it must not reach the catalog"
            )
        sealing = getattr(dialect, "visage_sealing", None)
        return stored if sealing is None or stored is None else sealing.seal(stored)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> np.ndarray | None:
        sealing = getattr(dialect, "visage_sealing", None)
        if value is not None and sealing is not None and len(value) % 4:  # no whole number of float32: sealed
            value = sealing.open(value)
        return super().process_result_value(value, dialect)


# Keys sort by their bytes, as object stores list them, whatever the database's language.
KeyText = Text().with_variant(Text(collation="C"), "postgresql")
LONGEST_KEY = 1024  # bytes, as in S3; PostgreSQL takes none over 2,704 into an index
Id = BigInteger().with_variant(Integer(), "sqlite")  # only INTEGER counts up by itself in SQLite


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, list[str]: JSON, np.ndarray: Vector, str: Text}  # noqa: RUF012

    @classmethod
    def __table_cls__(cls, name: str, metadata: MetaData, *parts: Any, **options: Any) -> Table:
        """Have SQLite give the number of a row once, as PostgreSQL does: it is written down where it outlives the row."""
        numbered = any(isinstance(part, Column) and part.name == "id" for part in parts)
        return Table(name, metadata, *parts, sqlite_autoincrement=numbered, **options)


class Collection(Base):
    """A set of photographs in an object store, and what may be done with them."""

    __tablename__ = "collection"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    uri: Mapped[str]
    include: Mapped[list[str]]
    exclude: Mapped[list[str]]
    sensitive_attributes: Mapped[list[str]]
    legal_basis: Mapped[str | None]
    consent_note: Mapped[str | None]
    retention_days: Mapped[int | None]  # embeddings are deleted so long after their face was found; None: kept
    created_at: Mapped[datetime] = mapped_column(default=now)
    removed_at: Mapped[datetime | None]  # from then on nothing is left of it but its number


class ModelVersion(Base):
    """A model version that has produced rows: its contract is what those rows can be compared under."""

    __tablename__ = "model_version"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    version: Mapped[int]
    role: Mapped[str]
    contract: Mapped[str] = mapped_column(unique=True)
    contract_content: Mapped[dict[str, Any]]
    weights_sha256: Mapped[str]
    dimension: Mapped[int | None]
    licence: Mapped[str]
    calibration: Mapped[dict[str, Any] | None]
    serving: Mapped[bool] = mapped_column(default=False)  # the one embedding version that queries use
    created_at: Mapped[datetime] = mapped_column(default=now)


class Schedule(Base):
    """When a collection is processed. `active_since`: times before it are nobody's loss (it was added or resumed then)."""

    __tablename__ = "schedule"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), index=True)
    cron: Mapped[str]
    timezone: Mapped[str]
    catch_up: Mapped[bool]
    paused: Mapped[bool] = mapped_column(default=False)
    active_since: Mapped[datetime] = mapped_column(default=now)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Split(Base):
    """Where the keys of a collection are cut, so that `parts` runs can share it."""

    __tablename__ = "split"
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), primary_key=True)
    parts: Mapped[int] = mapped_column(primary_key=True)
    boundaries: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Run(Base):
    """One night's work on one collection, or on the keys of it after `after_key` up to and including `through_key`.

    A scheduled one claims its slot, the time that the schedule names: no two runs may have it, unless one has crashed.
    """

    __tablename__ = "run"
    __table_args__ = (
        Index(
            "uq_run_slot",
            "schedule_id",
            "slot",
            unique=True,
            sqlite_where=text("status <> 'crashed'"),
            postgresql_where=text("status <> 'crashed'"),
        ),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), index=True)
    status: Mapped[str]
    recipe: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    host: Mapped[str]
    process_id: Mapped[int]
    process_started: Mapped[float]  # see `infra.catalog.work.runs.process_started`
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    tracking_run_id: Mapped[str | None]
    error: Mapped[str | None]
    after_key: Mapped[str | None] = mapped_column(KeyText)
    through_key: Mapped[str | None] = mapped_column(KeyText)
    schedule_id: Mapped[int | None] = mapped_column(Id)
    slot: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]  # by the database's clock
    reported_at: Mapped[datetime | None]  # when somebody was told that it did not end well


class Content(Base):
    """Distinct bytes of a collection: what is processed, once."""

    __tablename__ = "content"
    __table_args__ = (UniqueConstraint("collection_id", "sha256"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"))
    sha256: Mapped[str]
    status: Mapped[str]
    recipe: Mapped[str]
    owner_image_id: Mapped[int] = mapped_column(Id)
    run_id: Mapped[int] = mapped_column(Id)
    format: Mapped[str | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    taken_at: Mapped[str | None]  # EXIF has no time zone
    perceptual_hash: Mapped[str | None]  # 64 bits in hexadecimal; pictures that look the same differ in few
    notes: Mapped[list[str]] = mapped_column(default=list)
    failure_stage: Mapped[str | None]
    failure_reason: Mapped[str | None]
    failure_message: Mapped[str | None]
    failure_retryable: Mapped[bool] = mapped_column(default=False)


class Image(Base):
    """An object of a collection: a key, and the content found under it."""

    __tablename__ = "image"
    __table_args__ = (
        UniqueConstraint("collection_id", "key"),
        Index("ix_image_work", "collection_id", "status", "id"),
        Index("ix_image_finished", "run_id", "status", sqlite_where=FINISHED, postgresql_where=FINISHED),
        CheckConstraint(f"status IN ({', '.join(repr(s.value) for s in ImageStatus)})", name="status"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(KeyText)
    etag: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    modified_at: Mapped[datetime]
    status: Mapped[str]
    retryable: Mapped[bool] = mapped_column(default=False)
    recipe: Mapped[str | None]
    content_id: Mapped[int | None] = mapped_column(ForeignKey("content.id", ondelete="SET NULL"), index=True)
    # What it held before it changed, until what it holds now is known to show the same faces or others; not pruned meanwhile.
    former_content_id: Mapped[int | None] = mapped_column(Id, index=True)
    run_id: Mapped[int | None] = mapped_column(Id)
    pending_since: Mapped[datetime | None]


class Face(Base):
    """A detected face: box and landmarks in pixels of the upright original photo."""

    __tablename__ = "face"
    __table_args__ = (UniqueConstraint("content_id", "detector_id", "ordinal"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    content_id: Mapped[int] = mapped_column(ForeignKey("content.id", ondelete="CASCADE"))
    detector_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"))
    ordinal: Mapped[int]
    x1: Mapped[float]
    y1: Mapped[float]
    x2: Mapped[float]
    y2: Mapped[float]
    landmarks: Mapped[np.ndarray]
    score: Mapped[float]
    quality: Mapped[float] = mapped_column(index=True)
    quality_parts: Mapped[dict[str, Any]]
    crop_key: Mapped[str]
    found_at: Mapped[datetime] = mapped_column(default=now)
    embeddings_expired_at: Mapped[datetime | None]  # by the collection's retention: none is made again


class Embedding(Base):
    """A face's vector of unit length under one model version: the truth, of which every index is a projection.

    PostgreSQL has one more column, `half`: the same in pgvector's half precision, which it generates by itself from `vector`,
    and one HNSW index over it per model version (`infra.catalog.search.vectors`). With a `restorer_id` the vector was made from
    restored pixels.
    """

    __tablename__ = "embedding"
    __table_args__ = (Index("ix_embedding_version", "model_version_id", "face_id"),)
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    vector: Mapped[np.ndarray] = mapped_column(UnitVector)
    restorer_id: Mapped[int | None] = mapped_column(ForeignKey("model_version.id"))


class EmbeddingChange(Base):
    """Which embeddings came, changed or went, in this order: what an index outside of the database has yet to follow.

    SQLite's triggers write it (`infra.catalog.search.vectors.keep_journal`). In PostgreSQL it stays empty: the index is
    its own.
    """

    __tablename__ = "embedding_change"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    model_version_id: Mapped[int] = mapped_column(Id)
    face_id: Mapped[int] = mapped_column(Id)


class Restoration(Base):
    """A restored crop. Its detail is invented: kept apart from the face, with what says how far it can be trusted."""

    __tablename__ = "restoration"
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    accepted: Mapped[bool]
    reason: Mapped[str]
    crop_key: Mapped[str]
    identity_similarity: Mapped[float]
    fidelity: Mapped[float]
    photo_sharpness: Mapped[float | None]  # unknown of what was restored before it was measured
    sharpness: Mapped[float | None]
    repeated_in_float32: Mapped[bool] = mapped_column(default=False)  # half precision had overflowed


class Attribute(Base):
    """What a model says of one property of a face, or what was measured: a number, a vector, or a picture of classes.

    `kind` and `unit` say what the value is (models.spec.Kind). `label` is the class of a category. `vector` holds points as
    x, y, x, y in pixels of the upright original, or several numbers. `mask_key` is an object: a PNG of class indices.
    """

    __tablename__ = "attribute"
    __table_args__ = (Index("ix_attribute_name", "name", "label", "value"),)
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    unit: Mapped[str]
    value: Mapped[float | None]
    label: Mapped[str | None]
    confidence: Mapped[float | None]
    probabilities: Mapped[dict[str, Any] | None]
    vector: Mapped[np.ndarray | None]
    mask_key: Mapped[str | None]


class Identity(Base):
    """Faces believed to show one person, under one embedding contract."""

    __tablename__ = "identity"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), index=True)
    name: Mapped[str | None]  # the person's
    person_id: Mapped[int | None] = mapped_column(Id, index=True)  # about whom people decided something
    created_at: Mapped[datetime] = mapped_column(default=now)


class FaceIdentity(Base):
    """A face's membership in an identity. Exemplars are the faces that later ones are compared with."""

    __tablename__ = "face_identity"
    __table_args__ = (
        Index(
            "ix_face_identity_exemplar",
            "model_version_id",
            "identity_id",
            sqlite_where=text("exemplar = 1"),
            postgresql_where=text("exemplar"),
        ),
        Index(
            "ix_face_identity_standing",
            "identity_id",
            sqlite_where=text("exemplar = 1"),
            postgresql_where=text("exemplar"),
        ),
        Index("ix_face_identity_members", "identity_id", "face_id", "model_version_id"),
    )
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    identity_id: Mapped[int | None] = mapped_column(ForeignKey("identity.id", ondelete="CASCADE"))
    exemplar: Mapped[bool] = mapped_column(default=False)
    run_id: Mapped[int] = mapped_column(Id)


class UngroupedFace(Base):
    """A face with an embedding that no run has given a place yet. Triggers write it (`infra.catalog.identities.waiting`)."""

    __tablename__ = "ungrouped_face"
    __table_args__ = (
        ForeignKeyConstraint(
            ["face_id", "model_version_id"], ["embedding.face_id", "embedding.model_version_id"], ondelete="CASCADE"
        ),
    )
    model_version_id: Mapped[int] = mapped_column(Id, primary_key=True)
    face_id: Mapped[int] = mapped_column(Id, primary_key=True)


class ShrunkIdentity(Base):
    """An identity that a face has left since grouping last looked: it may be empty. Triggers write it."""

    __tablename__ = "shrunk_identity"
    identity_id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)


class MergeProposal(Base):
    """Two identities that may be one person, with the pair of faces that speaks for it; a person decides."""

    __tablename__ = "merge_proposal"
    identity_a_id: Mapped[int] = mapped_column(ForeignKey("identity.id", ondelete="CASCADE"), primary_key=True)
    identity_b_id: Mapped[int] = mapped_column(
        ForeignKey("identity.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    face_a_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), index=True)
    face_b_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), index=True)
    similarity: Mapped[float]
    run_id: Mapped[int] = mapped_column(Id)


class Failure(Base):
    """Something that could not be processed: what, where, why, and whether it will be tried again."""

    __tablename__ = "failure"
    __table_args__ = (UniqueConstraint("run_id", "key", "stage"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), index=True)
    image_id: Mapped[int | None] = mapped_column(ForeignKey("image.id", ondelete="CASCADE"), index=True)
    key: Mapped[str] = mapped_column(KeyText)
    stage: Mapped[str]
    reason: Mapped[str]
    message: Mapped[str]
    retryable: Mapped[bool]
    failed_at: Mapped[datetime] = mapped_column(default=now)
    resolved_at: Mapped[datetime | None]


class Erasure(Base):
    """Certificate that something was erased: when, why and how many rows, without any biometric content."""

    __tablename__ = "erasure"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    reason: Mapped[str]
    who: Mapped[str] = mapped_column(default="")
    counts: Mapped[dict[str, Any]]
    requested_at: Mapped[datetime] = mapped_column(default=now)
    completed_at: Mapped[datetime | None]
