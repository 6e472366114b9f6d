"""The recipe of a collection: which model versions do what to its photographs. Its digest tells done from to do."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra import weights
from infra.catalog.faces import Contract
from infra.catalog.search.vectors import create_index
from infra.catalog.statements import upsert
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.settings import Settings
from models.attributes.measured import MEASURED
from models.quality import QUALITY_TEMPLATE
from models.spec import Attribute, Role
from models.template import Template
from tasks.calibration import shipped_calibration
from tasks.embedding_decision import Decision, decision_for
from tasks.model_version import ModelVersion, NotInstalled, find_version

PORTRAIT_TEMPLATE = QUALITY_TEMPLATE  # also wide enough for every other template, should a model be added
MEASURED_VERSION = ModelVersion(MEASURED.name, 2, "", Path(), MEASURED)  # nothing to load
STAGES_VERSION = 2  # raise it when a change outside the models (quality, gates, decoding) must reprocess everything


@dataclass(frozen=True)
class Recipe:
    """The model versions at work, and the attributes that are wanted of them."""

    detector: ModelVersion
    embedder: ModelVersion
    restorer: ModelVersion | None
    describers: tuple[ModelVersion, ...]
    attributes: frozenset[str]

    @property
    def versions(self) -> tuple[ModelVersion, ...]:
        restorers = () if self.restorer is None else (self.restorer,)
        return (self.detector, self.embedder, *restorers, *self.describing)

    @property
    def describing(self) -> tuple[ModelVersion, ...]:
        """Everything that gives attributes: what is measured on every face, then the models."""
        return (MEASURED_VERSION, *self.describers)

    @cached_property
    def shared(self) -> ModelVersion | None:
        """The describer whose forward gives the embedding too: made of the same checkpoint as the embedder."""
        for version in self.describers:
            if version.spec.embeds == self.embedder.name and not self.embedder.spec.mirror:
                files, own = (set(weights.origin(v.weights).values()) for v in (version, self.embedder))
                if files == own:
                    return version
        return None

    @cached_property
    def heads(self) -> frozenset[str]:
        """Contracts of the describers that are heads of the very embedder: they read its embeddings, not crops."""
        heads = (version for version in self.describers if version.spec.reads == self.embedder.name)
        return frozenset(v.contract for v in heads if self.embedder.digest in weights.origin(v.weights).values())

    @cached_property
    def decision(self) -> Decision | None:
        """Whether restored faces are embedded, and at which sizes; None: they are not."""
        return None if self.restorer is None else decision_for(self.restorer, self.embedder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) of every contract, the attributes, which restored faces are embedded, and the version of the
        stages."""
        content: dict[str, object] = {
            "contracts": [version.contract for version in self.versions],
            "attributes": sorted(self.attributes),
            "stages": STAGES_VERSION,
        }
        if self.decision is not None and self.decision.ranges:
            content["restored_embedded"] = self.decision.ranges
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def stored_attributes(self) -> tuple[tuple[ModelVersion, Attribute], ...]:
        """What is kept of every face: one row each in the catalog."""
        return tuple(
            (version, attribute)
            for version in self.describing
            for attribute in version.spec.attributes
            if version is MEASURED_VERSION or attribute.name in self.attributes
        )

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """The views of a face that the stages need."""
        wanted = [version.spec.preprocess for version in self.versions]
        return tuple({p.template.name: p.template for p in wanted if p is not None}.values())


class WrongRole(ValueError):
    """A model is given work that it does not do."""


def installed(reference: str, settings: Settings) -> ModelVersion:
    """Return the version that NAME, NAME@VERSION or NAME@ALIAS refers to, to compute as the settings say.

    Raises:
        UnknownModel, NotInstalled: if there is none; says how to install it.
    """
    version = find_version(reference, settings.weights_folder, settings.mlflow_uri)
    return replace(version, precision=settings.precision)


def version_for(role: Role, reference: str, settings: Settings) -> ModelVersion:
    """Return the version that NAME, NAME@VERSION or NAME@ALIAS refers to, which must have this role.

    Raises:
        UnknownModel, NotInstalled: if there is none; says how to install it.
        WrongRole: if it does other work.
    """
    version = installed(reference, settings)
    if version.spec.role is not role:
        raise WrongRole(
            f"{reference} cannot {role.value}: it is a model to {version.spec.role.value}. Name another one."
        )
    return version


def version_of_row(row: ModelVersionRow, settings: Settings) -> ModelVersion:
    """Return the version on this machine that a row of the catalog stands for.

    Raises:
        NotInstalled: if it is not here, or the one of that name has another contract.
    """
    reference = f"{row.name}@{row.version}"
    version = installed(reference, settings)
    if version.contract != row.contract:
        raise NotInstalled(
            f"the catalog was made with another {reference} than is installed here (other weights or preprocessing); "
            "install that one again"
        )
    return version


def current_recipe(
    settings: Settings, sensitive_attributes: frozenset[str], embedder: ModelVersion | None = None
) -> Recipe:
    """The champions of today, with the sensitive attributes that the collection has switched on.

    `embedder` takes the place of the one that the settings name: after an upgrade the catalog decides.

    Raises:
        NotInstalled: if one of the models that the settings name has no champion; says how to install it.
        WrongRole: if the settings give a model work that it does not do.
    """

    def of(name: str, role: Role) -> ModelVersion:
        return version_for(role, name, settings)

    wanted: dict[ModelVersion, set[str]] = {}
    for name in settings.describe_models:
        version = of(name, Role.DESCRIBE)
        names = {a.name for a in version.spec.attributes if not a.sensitive or a.name in sensitive_attributes}
        if names:
            wanted[version] = names
    return Recipe(
        detector=of(settings.detect_model, Role.DETECT),
        embedder=embedder or of(settings.embed_model, Role.EMBED),
        restorer=of(settings.restore_model, Role.RESTORE) if settings.restore_model else None,
        describers=tuple(wanted),
        attributes=frozenset().union(*wanted.values()),
    )


def enter(session: Session, recipe: Recipe, companion: ModelVersion | None = None) -> Contract:
    """Write the recipe's model versions, and a second embedder, into the catalog and return their rows' ids."""
    companions = () if companion is None else (companion,)
    ids = enter_versions(session, (*recipe.versions, *companions))
    return Contract(
        recipe=recipe.digest,
        detector_id=ids[recipe.detector.contract],
        embedder_id=ids[recipe.embedder.contract],
        describer_ids=tuple(ids[version.contract] for version in recipe.describing),
        restorer_id=None if recipe.restorer is None else ids[recipe.restorer.contract],
        companion_id=None if companion is None else ids[companion.contract],
    )


def enter_versions(session: Session, versions: Sequence[ModelVersion]) -> dict[str, int]:
    """Write model versions into the catalog and return their rows' ids by contract. What is there stays as it is."""
    upsert(
        session,
        ModelVersionRow,
        [
            {
                "name": version.spec.name,
                "version": version.version,
                "role": version.spec.role.value,
                "contract": version.contract,
                "contract_content": json.loads(version.contract_content),
                "weights_sha256": version.digest,
                "dimension": version.spec.dimension,
                "licence": version.spec.licence,
                "calibration": shipped_calibration(version.contract),
                "serving": False,
            }
            for version in versions
        ],
        ["contract"],
        [],
    )
    contracts = [version.contract for version in versions]
    rows = session.execute(
        select(ModelVersionRow.contract, ModelVersionRow.id).where(ModelVersionRow.contract.in_(contracts))
    )
    ids = dict(rows.tuples().all())
    for version in versions:
        if version.spec.role is Role.EMBED:
            create_index(session.connection(), ids[version.contract], version.spec.dimension or 0)
    return ids
