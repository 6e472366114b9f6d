"""What clients ask for: the bodies of writes. Unknown fields are refused."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.service.dto import Id
from flows.service.problems import invalid


class Order(BaseModel):
    """A body of a write."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Make one of what a form of the page says.

        Raises:
            Problem: 422, naming what does not fit.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise invalid(error.errors()) from error


class CollectionIn(Order):
    """A collection to add. Nothing is read until a run is started."""

    name: str = Field(min_length=1, max_length=100)
    uri: str = Field(
        min_length=1, max_length=1000, description="A folder of the server's machine, or s3://bucket/prefix."
    )
    include: list[str] = Field(default=[], max_length=100)
    exclude: list[str] | None = Field(default=None, max_length=100)
    sensitive_attributes: list[str] = Field(default=[], max_length=100)


class CollectionChange(Order):
    """What to call a collection from now on, or where its photographs lie; one of the two."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    uri: str | None = Field(default=None, min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if (self.name is None) == (self.uri is None):
            raise ValueError("give a name or a uri: one of the two")
        return self


class RemovalOrder(Order):
    """A collection to remove. `digest` is the plan's: what was not seen is not removed. `word` must be 'remove'."""

    digest: str = Field(pattern="^[0-9a-f]{64}$")
    word: str = Field(max_length=20)


class NameIn(Order):
    """What to call a person."""

    name: str = Field(min_length=1, max_length=200)


class FacesIn(Order):
    """Faces that something is said about."""

    faces: list[Id] = Field(min_length=1, max_length=1000)


class OtherIn(Order):
    """Another identity."""

    other: Id


class PairIn(Order):
    """Two identities."""

    identity_a: Id
    identity_b: Id


class ScheduleIn(Order):
    """A schedule to add: minute, hour, day of month, month, day of week."""

    name: str = Field(min_length=1, max_length=100)
    collection: str = Field(min_length=1, max_length=100)
    cron: str = Field(min_length=1, max_length=100, examples=["0 2 * * *"])
    timezone: str = Field(default="UTC", max_length=100)
    catch_up: bool = False


class ErasureIn(Order):
    """What to erase: some faces, a person, or a photograph; exactly one of them.

    `by`: how faces were found; the certificate says it.
    """

    faces: list[Id] | None = Field(default=None, min_length=1, max_length=10_000)
    identity: Id | None = None
    image: Id | None = None
    by: Literal["id", "photo"] = "id"

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if sum(part is not None for part in (self.faces, self.identity, self.image)) != 1:
            raise ValueError("name faces, an identity or an image: exactly one of them")
        if self.by == "photo" and self.faces is None:
            raise ValueError("by a photograph only faces are found: name them")
        return self


class ErasureOrder(ErasureIn):
    """An erasure to carry out. `digest` is the plan's: what was not seen is not erased. `word` must be 'erase'."""

    digest: str = Field(pattern="^[0-9a-f]{64}$")
    word: str = Field(max_length=20)
    reason: str = Field(min_length=1, max_length=500)


class RetryIn(Order):
    """Which failures to take up again: of a collection, for some reasons; all without."""

    collection: str | None = Field(default=None, max_length=100)
    reasons: list[str] = Field(default=[], max_length=50)
