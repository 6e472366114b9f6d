"""Which models there are, their versions here, and what of the catalog each has made."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.catalog.tables.schema import Attribute, Embedding, Face, Restoration
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.registry import Registered, Registry
from models import table
from models.spec import ModelSpec, Role

_MADE = {
    Role.DETECT: select(Face.detector_id, func.count()).group_by(Face.detector_id),
    Role.EMBED: select(Embedding.model_version_id, func.count()).group_by(Embedding.model_version_id),
    Role.RESTORE: select(Restoration.model_version_id, func.count()).group_by(Restoration.model_version_id),
    Role.DESCRIBE: select(Attribute.model_version_id, func.count(func.distinct(Attribute.face_id))).group_by(
        Attribute.model_version_id
    ),
}


@dataclass(frozen=True)
class VersionRow:
    """A version of a model. `faces`: how many of the catalog it has worked on; `serving`: queries use its embeddings."""

    version: int
    aliases: tuple[str, ...]
    digest: str
    contract: str
    faces: int
    serving: bool
    calibrated: bool


@dataclass(frozen=True)
class ModelRow:
    """A model of this release with its versions here."""

    spec: ModelSpec
    versions: tuple[VersionRow, ...]


def overview(session: Session, registry: Registry) -> list[ModelRow]:
    """Every model that this release knows, by role and name."""
    made = {id_: count for query in _MADE.values() for id_, count in session.execute(query).tuples()}
    rows = {row.contract: row for row in session.scalars(select(ModelVersionRow))}
    versions: dict[str, list[VersionRow]] = {}
    for registered in registry.versions():
        versions.setdefault(registered.name, []).append(_version(registered, rows, made))
    return [ModelRow(spec, tuple(versions.get(spec.name, ()))) for spec in table.listed(versions)]


def _version(registered: Registered, rows: Mapping[str, ModelVersionRow], made: Mapping[int, int]) -> VersionRow:
    contract = registered.tags.get("contract", "")
    row = rows.get(contract)
    return VersionRow(
        registered.version,
        registered.aliases,
        registered.digest,
        contract,
        0 if row is None else made.get(row.id, 0),
        row is not None and row.serving,
        row is not None and row.calibration is not None,
    )
