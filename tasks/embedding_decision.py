"""May restored faces be embedded? Decided by measurement, for a version of a restorer beside a version of a recognition model.

The decision is a tag of the restorer's version in the registry, so it holds wherever that version is used. Without one, and
where the measurement did not speak clearly for the restorer, faces are embedded as they were photographed.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.registry import Registry
from tasks.model_version import ModelVersion

TAG = "embedding_decision"


class SizeDecision(BaseModel):
    """Whether restored faces are embedded whose eyes lie `low` to `high` px apart in the photo (`high` excluded), and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float = Field(ge=0)
    high: float
    embed: bool
    reason: str
    faces: int


class Decision(BaseModel):
    """What was decided for all sizes. `embedder` is the contract of the recognition model, `evidence` the run in MLflow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedder: str
    sizes: tuple[SizeDecision, ...]
    evidence: str
    decided_at: datetime

    def embeds(self, eye_distance: float) -> bool:
        """Whether a restored face whose eyes lie so many px apart in the photo is embedded."""
        return any(size.embed and size.low <= eye_distance < size.high for size in self.sizes)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The sizes (low, high) that restored faces are embedded at."""
        return tuple((size.low, size.high) for size in self.sizes if size.embed)


def keep(tracking_uri: str, restorer: ModelVersion, decision: Decision) -> None:
    """Write a decision beside the restorer's version, in the place of an earlier one for the same recognition model."""
    registry = Registry(tracking_uri)
    registry.tag(restorer.name, restorer.version, _tag(decision.embedder), decision.model_dump_json())


def decision_for(restorer: ModelVersion, embedder: ModelVersion) -> Decision | None:
    """The decision that the restorer's version carries for this recognition model; None if there is none.

    Raises:
        ValueError: if the registry holds something else in its place.
    """
    text = restorer.tags.get(_tag(embedder.contract))
    if text is None:
        return None
    try:
        return Decision.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"the registry's tag {_tag(embedder.contract)} of {restorer.reference} is no decision that this release can read; "
            f"'visage evaluate restoration' makes a new one ({error.error_count()} errors)"
        ) from error


def _tag(contract: str) -> str:
    return f"{TAG}.{contract}"
