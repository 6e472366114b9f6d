"""Which faces: conditions that compose, for search, queries and exports alike."""

import json
from datetime import date
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import Session

from infra.asked import AskedWrongly
from infra.catalog import collections
from infra.catalog.identities import decisions
from infra.catalog.queries import attributes
from infra.catalog.sides import by_index, by_rows
from infra.catalog.tables.schema import Attribute, Collection, Content, Face, FaceIdentity


class InvalidFilter(AskedWrongly):
    """A filter that no face can be meant by; the message names the condition."""


class _Condition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, **conditions: Any) -> Self:
        """Make one, with an error that people can read.

        Raises:
            InvalidFilter: naming the condition that does not fit.
        """
        try:
            return cls(**conditions)
        except ValidationError as error:
            told = "; ".join(
                (".".join(map(str, e["loc"])) + f"={e['input']!r}: " if e["loc"] else "") + e["msg"]
                for e in error.errors()
            )
            raise InvalidFilter(f"this filter does not fit: {told}") from error


class AttributeFilter(_Condition):
    """An attribute that some model gave a face: of this label, in this range, at least this sure."""

    name: str = Field(min_length=1)
    label: str | None = None
    least: FiniteFloat | None = None
    most: FiniteFloat | None = None
    min_confidence: float = Field(0, ge=0, le=1)

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"the range of {self.name} from {self.least} to {self.most} is empty")
        return self

    @classmethod
    def parse(cls, told: str) -> Self:
        """Read `name=label`, or `name=least..most`, of which one number may be left out.

        Raises:
            InvalidFilter: for anything else.
        """
        name, equals, wanted = told.partition("=")
        least, dots, most = wanted.partition("..")
        if not equals or not wanted.strip(".") or not name:
            raise InvalidFilter(f"{told!r}: an attribute is written as name=label or name=least..most, like age=20..30")
        if not dots:
            return cls.of(name=name, label=wanted)
        return cls.of(name=name, least=least or None, most=most or None)

    def clause(self, session: Session) -> ColumnElement[bool]:
        tests: list[ColumnElement[bool]] = []
        if self.label is not None:
            tests.append(Attribute.label == self.label)
        if self.least is not None:
            tests.append(Attribute.value >= self.least)
        if self.most is not None:
            tests.append(Attribute.value <= self.most)
        if self.min_confidence:
            tests.append(Attribute.confidence >= self.min_confidence)
        return attributes.having(session, self.name, *tests)

    def check(self, session: Session) -> None:
        """See that the catalog knows such an attribute.

        Raises:
            InvalidFilter: naming those that it knows.
        """
        names = attributes.names(session)
        if self.name not in names:
            held = ", ".join(names) or "none"
            raise InvalidFilter(f"no face has the attribute {self.name!r}; the catalog holds: {held}")
        labels = attributes.labels(session, self.name)
        if self.label is not None and self.label not in labels:
            held = ", ".join(labels) or "none: it is a number"
            raise InvalidFilter(f"no face has {self.name} {self.label!r}; the catalog holds: {held}")


class FaceFilter(_Condition):
    """Faces of these collections, taken between two days (both included), of this quality, with all of these attributes."""

    collections: tuple[str, ...] = ()
    taken_from: date | None = None
    taken_until: date | None = None
    min_quality: float = Field(0, ge=0, le=1)
    max_quality: float = Field(1, ge=0, le=1)
    attributes: tuple[AttributeFilter, ...] = ()
    identity_id: int | None = None

    @model_validator(mode="after")
    def _ranges_are_some(self) -> Self:
        if self.taken_from is not None and self.taken_until is not None and self.taken_from > self.taken_until:
            raise ValueError(f"there is no day from {self.taken_from} until {self.taken_until}")
        if self.min_quality > self.max_quality:
            raise ValueError(f"there is no quality from {self.min_quality} to {self.max_quality}")
        return self

    def check(self, session: Session) -> None:
        """See that what the filter names is there.

        Raises:
            UnknownCollection, InvalidFilter: naming what there is instead.
        """
        for name in self.collections:
            collections.by_name(session, name)
        for attribute in self.attributes:
            attribute.check(session)
        if self.identity_id is not None:
            try:
                decisions.identity(session, self.identity_id)
            except decisions.UnknownSubject:
                known = "'visage identities' lists them"
                raise InvalidFilter(f"the catalog knows no person {self.identity_id}; {known}") from None

    def clauses(self, session: Session) -> list[ColumnElement[bool]]:
        """Conditions on `Face`, all of which must hold. That its photo is still there is not among them: see `visible`.

        Raises:
            UnknownSubject: if there is no such person.
        """
        clauses: list[ColumnElement[bool]] = [attribute.clause(session) for attribute in self.attributes]
        if self.collections:
            # Numbers, not a subquery: only of numbers does PostgreSQL know how few faces they keep, and plan accordingly.
            of = session.scalars(select(Collection.id).where(Collection.name.in_(self.collections))).all()
            within = Content.collection_id.in_(of)
            each = exists().where(Content.id == Face.content_id, within)
            clauses.append(by_rows(session, Face.content_id, select(Content.id).where(within), each))
        taken: list[ColumnElement[bool]] = []
        if self.taken_from is not None:
            taken.append(taken_since(self.taken_from.isoformat()))
        if self.taken_until is not None:
            taken.append(taken_until(self.taken_until.isoformat()))
        if taken:
            clauses.append(exists().where(Content.id == Face.content_id, and_(*taken)))
        if self.min_quality > 0:
            clauses.append(by_index(session, Face.id, Face.quality, lambda column: column >= self.min_quality))
        if self.max_quality < 1:
            clauses.append(by_index(session, Face.id, Face.quality, lambda column: column <= self.max_quality))
        if self.identity_id is not None:
            clauses.append(of_identity(session, self.identity_id))
        return clauses

    def canonical(self) -> str:
        """The same text for the same filter."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def taken_since(words: str) -> ColumnElement[bool]:
    """A photo taken in this year, month or day, or later. EXIF times are text without a zone, whose order is that of time."""
    return func.substr(Content.taken_at, 1, len(words)) >= words


def taken_until(words: str) -> ColumnElement[bool]:
    """A photo taken before the end of this year, month or day."""
    return func.substr(Content.taken_at, 1, len(words)) <= words


def of_identity(session: Session, identity_id: int) -> ColumnElement[bool]:
    """A face of a person, or of whoever they were merged into.

    Raises:
        UnknownSubject: if there is no such person.
    """
    person = decisions.identity(session, identity_id)
    return Face.id.in_(select(FaceIdentity.face_id).where(FaceIdentity.identity_id == person.id))
