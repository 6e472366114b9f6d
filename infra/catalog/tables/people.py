"""Tables of what people decided about faces: the log of decisions, and what each of them says.

A person is who somebody said something about; identities are what a model believes, one set per embedding version. A person
outlives them: `Identity.person_id` ties the identities of every version to whom they stand for.
"""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from infra.catalog.tables.schema import Base, Id, now


class DecisionKind(StrEnum):
    """What people decide."""

    NAME = "name"
    CONFIRM = "confirm"
    REJECT = "reject"
    MERGE = "merge"
    SPLIT = "split"
    DECLINE = "decline"
    IGNORE = "ignore"


class Says(StrEnum):
    """What a decision says about a face."""

    IS = "is"
    IS_NOT = "is not"
    IGNORED = "ignored"


class Person(Base):
    """Somebody about whom people decided. `root_id` is whom this turned out to be by merges: itself at first."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    root_id: Mapped[int | None] = mapped_column(Id, index=True)
    merged_into_id: Mapped[int | None] = mapped_column(Id)
    name: Mapped[str | None]
    ignored: Mapped[bool] = mapped_column(default=False)


class Decision(Base):
    """What somebody decided, and when. In force until undone, or ended by a later decision that says otherwise."""

    __tablename__ = "decision"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    who: Mapped[str]
    decided_at: Mapped[datetime] = mapped_column(default=now)
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"), index=True)
    other_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"), index=True)
    name: Mapped[str | None]
    undone_at: Mapped[datetime | None]
    undone_by: Mapped[str | None]
    ended_by_id: Mapped[int | None] = mapped_column(Id, index=True)


class Statement(Base):
    """That a face is a person, is not, or is nobody's business (no person), as a decision says."""

    __tablename__ = "statement"
    __table_args__ = (
        Index("ix_statement_face_id", "face_id", "says"),
        Index("ix_statement_person_id", "person_id", "says"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    decision_id: Mapped[int] = mapped_column(ForeignKey("decision.id", ondelete="CASCADE"), index=True)
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"))
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"))
    says: Mapped[str]
    ended_by_id: Mapped[int | None] = mapped_column(Id, index=True)


class DecidedMove(Base):
    """Where a face was before a decision moved it, so that it can go back."""

    __tablename__ = "decided_move"
    decision_id: Mapped[int] = mapped_column(ForeignKey("decision.id", ondelete="CASCADE"), primary_key=True)
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), primary_key=True, index=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    former_identity_id: Mapped[int | None] = mapped_column(Id)
