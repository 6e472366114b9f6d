"""Which embedding versions the catalog's nights work with, before, during and after an upgrade."""

from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.tables.upgrades import UpgradeStatus
from infra.catalog.versioning import upgrades
from infra.catalog.versioning.versions import serving
from infra.settings import Settings
from models.spec import Role
from tasks.model_version import ModelVersion, find_version
from tasks.recipe import version_for, version_of_row


def embedder_at_work(session: Session, settings: Settings) -> ModelVersion:
    """The version that nights embed with: what the settings name, unless an upgrade has moved the catalog on from it.

    Raises:
        NotInstalled: if it is not on this machine.
    """
    asked = version_for(Role.EMBED, settings.embed_model, settings)
    upgrade, served = upgrades.latest(session), serving(session)
    if upgrade is None or served is None or upgrade.status == UpgradeStatus.ENDED.value:
        return asked
    pair = [session.get_one(ModelVersionRow, v).contract for v in (upgrade.former_id, upgrade.target_id)]
    return version_of_row(served, settings) if asked.contract in (upgrade.asked, *pair) else asked


def companion(session: Session, settings: Settings) -> ModelVersion | None:
    """The version that nights embed with besides: the one to come, or the one that a rollback would go back to."""
    upgrade = upgrades.latest(session)
    if upgrade is None or upgrade.status not in (UpgradeStatus.BACKFILLING.value, UpgradeStatus.SWITCHED.value):
        return None
    other = upgrade.target_id if upgrade.status == UpgradeStatus.BACKFILLING.value else upgrade.former_id
    return version_of_row(session.get_one(ModelVersionRow, other), settings)


def champion_at_work(catalog: Catalog, settings: Settings, reference: str) -> ModelVersion | None:
    """The version that a promotion of `reference` would replace in the catalog; None if it would replace none."""
    version = find_version(reference, settings.weights_folder, settings.mlflow_uri)
    with catalog.read() as session:
        served = serving(session)
        replaced = version.spec.role is Role.EMBED and served is not None and served.contract != version.contract
        return version_of_row(served, settings) if replaced and served is not None else None
