"""Tables of what is owed to those whose faces these are: who looked and decided, what was erased, and what must not return."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from infra.catalog.tables.schema import Base, Id, now


class Errand(StrEnum):
    """What is left to do outside the catalog's rows after an erasure."""

    OBJECT = "object"  # delete a crop or restored picture
    ARTIFACT = "artifact"  # delete a file of an MLflow run
    FILE = "file"  # delete a file or folder on this machine
    SCRUB = "scrub"  # overwrite what deleted rows left in the database's files


class Secret(Base):
    """Random bytes that belong to this catalog alone."""

    __tablename__ = "secret"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


class AuditEntry(Base):
    """Who did what to what. Every entry holds the hash of the one before; triggers refuse updates and deletions."""

    __tablename__ = "audit_entry"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    at: Mapped[str]  # as it was hashed
    who: Mapped[str]
    action: Mapped[str]
    subject: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str]


class Home(Base):
    """A home folder whose processes have opened this catalog, on one machine of several. `token`: in a file of the folder."""

    __tablename__ = "home"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    token: Mapped[str] = mapped_column(unique=True)
    host: Mapped[str]
    folder: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(default=now)
    retired_at: Mapped[datetime | None]  # when somebody said that it is no more


class Keeps(StrEnum):
    """What a place outside of the database holds of the catalog's content."""

    OBJECTS = "objects"  # crops and restored pictures, below an address
    REPORTS = "reports"  # what MLflow at an address was told of runs
    CACHE = "cache"  # thumbnails and search indexes of a home folder
    EXHIBITS = "exhibits"  # pages, exports and archives, wherever on a home's machine


class Holding(Base):
    """A place outside of the database that holds content, which an erasure must reach.

    Without a home it can be reached from everywhere, as a bucket can.
    """

    __tablename__ = "holding"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    home_id: Mapped[int | None] = mapped_column(ForeignKey("home.id", ondelete="CASCADE"), index=True)
    keeps: Mapped[str]
    address: Mapped[str]


class Outbox(Base):
    """An errand of an erasure that is not done yet. A crash leaves it here, and the next run or command goes on.

    Without a holding, anybody may do it.
    """

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    erasure_id: Mapped[int] = mapped_column(ForeignKey("erasure.id", ondelete="CASCADE"), index=True)
    errand: Mapped[str]
    place: Mapped[str]
    error: Mapped[str | None]
    holding_id: Mapped[int | None] = mapped_column(ForeignKey("holding.id", ondelete="CASCADE"), index=True)


class Suppression(Base):
    """Something erased that must not be taken in again, as a keyed hash: of an object as listed, of bytes, or of the bytes
    of a photo in which the face in `box` (x1, y1, x2, y2, pixels of the upright original) was erased."""

    __tablename__ = "suppression"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(index=True)
    box: Mapped[list[float] | None] = mapped_column(JSON(none_as_null=True))
    erasure_id: Mapped[int] = mapped_column(ForeignKey("erasure.id"), index=True)


class Exhibit(Base):
    """A file that we made outside the catalog and that shows or holds faces: a contact sheet, a page, an export."""

    __tablename__ = "exhibit"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    errand: Mapped[str]
    place: Mapped[str]
    collection_id: Mapped[int | None] = mapped_column(ForeignKey("collection.id", ondelete="SET NULL"), index=True)
    made_at: Mapped[datetime] = mapped_column(default=now)
    holding_id: Mapped[int | None] = mapped_column(ForeignKey("holding.id", ondelete="CASCADE"), index=True)
