"""What goes over the wire: the same models for the API, its OpenAPI description and the client."""

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from flows.service.problems import LARGEST_ID

Item = TypeVar("Item")
LOCATION: dict[str, Any] = {"headers": {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}}
Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


class Dto(BaseModel):
    """Frozen, and made from our own rows by their attributes."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Page(Dto, Generic[Item]):
    """Some items, and the cursor of the page after them; None at the end."""

    items: list[Item]
    next: str | None = None


class Me(Dto):
    """Who is asking."""

    name: str
    role: str


class CollectionOut(Dto):
    """A collection with the state of its images."""

    name: str
    uri: str
    include: list[str]
    exclude: list[str]
    sensitive_attributes: list[str]
    images: dict[str, int]


class BoxOut(Dto):
    """Where a face is, in pixels of the upright original: x1, y1, x2, y2."""

    face_id: int
    box: tuple[float, float, float, float]
    quality: float
    identity_id: int | None
    identity_name: str | None


class ImageOut(Dto):
    """A photograph. `others`: how many more keys hold the same bytes."""

    id: int
    collection: str
    key: str
    others: int
    status: str
    width: int | None
    height: int | None
    taken_at: str | None
    faces: list[BoxOut]
    picture: str | None = Field(description="Address of the photograph as JPEG; ?size= gives others.")


class AttributeOut(Dto):
    """A model's estimate; not a fact. A mask has no value, points and other lists of numbers have a vector instead."""

    name: str
    kind: str
    unit: str
    value: float | None
    label: str | None
    vector: tuple[float, ...] | None
    confidence: float | None
    model: str


class RestorationOut(Dto):
    """A restored crop. Its detail is invented by the model."""

    picture: str
    accepted: bool
    reason: str
    identity_similarity: float
    fidelity: float
    model: str
    synthetic: bool = True


class FaceOut(Dto):
    """A face with all that is known of it."""

    id: int
    collection: str
    keys: list[str]
    image_id: int | None = None
    box: tuple[float, float, float, float]
    score: float
    quality: float
    quality_parts: dict[str, float]
    crop: str
    identity_id: int | None
    identity_name: str | None
    attributes: list[AttributeOut]
    restoration: RestorationOut | None
    embedding_restorer: str | None = Field(
        description="Version that invented the pixels its embedding was made of; null: they were photographed."
    )


class MatchOut(Dto):
    """A face that resembles. `probability`: of one person, at even odds beforehand; None while not calibrated."""

    face: FaceOut
    similarity: float
    probability: float | None


class AnswerOut(Dto):
    """The matches of one face, most similar first, and how they were found."""

    box: tuple[float, float, float, float]
    score: float
    matches: list[MatchOut]
    model: str
    method: str


class IdentityOut(Dto):
    """A person, as far as one embedding model can tell."""

    id: int
    name: str | None
    faces: int
    photos: int
    cover: str | None = Field(default=None, description="Address of the crop that shows them best.")


class RunOut(Dto):
    """A night's work on one collection."""

    id: int
    collection: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    counts: dict[str, Any]
    error: str | None


class ProgressOut(Dto):
    """How far a run has got."""

    run_id: int
    status: str
    done: int
    total: int


class FailureOut(Dto):
    """What could not be processed, and why."""

    id: int
    run_id: int
    collection: str
    key: str
    image_id: int | None
    stage: str
    reason: str
    message: str
    retryable: bool
    failed_at: datetime


class JobOut(Dto):
    """Long work that the service has started. `run_id`: the run that does it, once it has begun."""

    id: int
    kind: str
    subject: str
    who: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    result: dict[str, Any] | None
    error: str | None
    run_id: int | None = None


class VersionOut(Dto):
    """A version of a model. `serving`: queries use its embeddings."""

    version: int
    aliases: list[str]
    digest: str
    contract: str | None = None
    faces: int | None = None
    serving: bool = False
    calibrated: bool = False


class ModelOut(Dto):
    """A model of this release, and its versions here."""

    name: str
    role: str
    title: str
    licence: str
    source: str
    paper: str
    dimension: int | None
    notes: str
    versions: list[VersionOut]


class FieldErrorOut(Dto):
    """What is wrong with a part of a request."""

    where: str
    what: str


class ProblemOut(Dto):
    """Problem details, RFC 9457. `errors`: of a request that does not fit, part by part."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldErrorOut] = []


class EvaluationOut(Dto):
    """What was measured of a model, and the files that show it."""

    id: str
    kind: str
    name: str
    when: datetime
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]
    files: list[str]


class HealthOut(Dto):
    """The service answers."""

    status: str


class ReadyOut(Dto):
    """Whether the service can do its work: `checks` says what of it is well."""

    ready: bool
    checks: dict[str, str]


class DecidedOut(Dto):
    """A decision that was written down. `identity_id`: the person it is about; of a split, the new one."""

    decision_id: int
    kind: str
    identity_id: int | None
    faces: int


class DecisionOut(Dto):
    """What somebody decided, and whether it was taken back."""

    decision_id: int
    kind: str
    who: str
    decided_at: datetime
    identity_id: int | None
    other_identity_id: int | None
    name: str | None
    faces: list[int]
    undone_at: datetime | None
    undone_by: str | None


class EvidenceOut(Dto):
    """A pair of faces of two identities."""

    face_a: int
    face_b: int
    similarity: float
    probability: float | None


class ProposalOut(Dto):
    """Two identities that may be one person, with the pairs of faces that speak for it."""

    identity_a: int
    name_a: str | None
    faces_a: int
    identity_b: int
    name_b: str | None
    faces_b: int
    evidence: list[EvidenceOut]


class ScheduleOut(Dto):
    """When a collection is processed. `next_at`: when it is due next; None while it is paused."""

    name: str
    collection: str
    cron: str
    timezone: str
    catch_up: bool
    paused: bool
    next_at: datetime | None
    last_slot: datetime | None


class PlanOut(Dto):
    """What an erasure would take. `exhibits`: pages, exports and archives on the service's machine that may show it."""

    kind: str
    faces: list[int]
    keys: list[str]
    counts: dict[str, int]
    exhibits: list[str]
    notes: list[str]
    digest: str


class RemovalOut(Dto):
    """What removing a collection would take. `exhibits`: pages, exports and archives on the service's machine."""

    collection: str
    uri: str
    counts: dict[str, int]
    schedules: list[str]
    exhibits: list[str]
    notes: list[str]
    digest: str


class AlikeOut(Dto):
    """A face of a photograph that was sent, the faces alike from `least` on, and what erasing them would take, if any are."""

    box: tuple[float, float, float, float]
    score: float
    least: float
    similarities: dict[int, float]
    plan: PlanOut | None


class CertificateOut(Dto):
    """Proof that something was erased, without biometric content. `completed_at` is None while files are left to remove.

    `waits_for`: home folders of other machines whose own processes remove them.
    """

    erasure_id: int
    kind: str
    reason: str
    who: str
    counts: dict[str, Any]
    requested_at: datetime
    completed_at: datetime | None
    waits_for: list[str] = []


class PlaceOut(Dto):
    """Where content lies outside of the catalog. Without a home it is shared, as a bucket is. `errands`: files to remove."""

    place_id: int
    keeps: str
    address: str
    home_id: int | None
    host: str | None
    folder: str | None
    seen_at: datetime | None
    errands: int


class ForgottenOut(Dto):
    """A place that was forgotten, and how many files will never be removed there."""

    place_id: int
    unreached: int


class AuditOut(Dto):
    """Who did what, by ids alone."""

    entry_id: int
    at: str
    who: str
    action: str
    subject: dict[str, Any]


class RetriedOut(Dto):
    """How many images the next run takes up, and why others would only fail again, by reason."""

    taken: int
    refused: dict[str, str]


class CollectionStatusOut(Dto):
    """How a collection stands; `problems` is empty when its last night was good."""

    collection: str
    problems: list[str]
    pending: int
    failed: int
    oldest_pending: datetime | None


class StatusOut(Dto):
    """Whether the last night of every collection was good."""

    at: datetime
    good: bool
    collections: list[CollectionStatusOut]


class RolledBackOut(Dto):
    """Which version was replaced, and which one queries and nights use again."""

    replaced: str
    serving: str


class UpgradeOut(Dto):
    """An upgrade of the embedding model: the gate's verdict, and how many faces lack the new version."""

    target: str
    former: str
    status: str
    verdict: str
    reason: str
    forced: bool
    faces: int
    missing: int
    given_up: int
    faces_per_second: float | None
    seconds_left: float | None
    planned_at: datetime
    worked_at: datetime | None
    switched_at: datetime | None
