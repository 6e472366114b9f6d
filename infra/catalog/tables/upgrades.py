"""Tables of model upgrades: which embedding version is to follow which, why, how far that has got, and the bridge between."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from infra.catalog.tables.schema import Base, Id, now


class UpgradeStatus(StrEnum):
    """Where an upgrade stands."""

    REFUSED = "refused"  # by the gate
    BACKFILLING = "backfilling"  # queries use the former version
    SWITCHED = "switched"  # queries use the target
    ROLLED_BACK = "rolled back"  # queries use the former version again
    SETTLED = "settled"  # over: another upgrade took its place, or one of its versions is retired
    ENDED = "ended"  # the settings named another model, which nights brought the catalog to


class Upgrade(Base):
    """The way of the catalog from one embedding version to another.

    `asked` is the contract that settings and registry named when it was planned: as long as they name that one, or one of the
    two versions, the catalog decides which is at work. `bridge` carries former vectors (D,) to target vectors (E,): D x E.
    """

    __tablename__ = "upgrade"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    target_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), index=True)
    former_id: Mapped[int] = mapped_column(ForeignKey("model_version.id"), index=True)
    asked: Mapped[str]
    status: Mapped[str]
    verdict: Mapped[str]
    reason: Mapped[str]
    forced: Mapped[bool] = mapped_column(default=False)
    source: Mapped[str]
    crop_agreement: Mapped[float | None]
    faces_per_second: Mapped[float | None]
    planned_at: Mapped[datetime] = mapped_column(default=now)
    worked_at: Mapped[datetime | None]
    switched_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    bridge: Mapped[np.ndarray | None]
    bridge_measures: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class BackfillFailure(Base):
    """A face of which the target's embedding cannot be made: the next night processes its photo anew."""

    __tablename__ = "backfill_failure"
    upgrade_id: Mapped[int] = mapped_column(ForeignKey("upgrade.id", ondelete="CASCADE"), primary_key=True)
    face_id: Mapped[int] = mapped_column(ForeignKey("face.id", ondelete="CASCADE"), primary_key=True, index=True)
    reason: Mapped[str]


class BackfillClaim(Base):
    """A photo that one process of a shared backfill has in hand; `claimed_at` is by the database's clock."""

    __tablename__ = "backfill_claim"
    upgrade_id: Mapped[int] = mapped_column(ForeignKey("upgrade.id", ondelete="CASCADE"), primary_key=True)
    content_id: Mapped[int] = mapped_column(ForeignKey("content.id", ondelete="CASCADE"), primary_key=True, index=True)
    worker: Mapped[str]
    claimed_at: Mapped[datetime]
