"""Upgrades of the embedding model: plan, gate, switch, rollback, retire. `tasks.versioning.backfill` does the work between.

From the plan to the switch, queries and nights stay with the former version. The switch is one transaction in the catalog: what
queries use, which recipe the photographs count as done by, what people decided. Until the former version is retired, nights
embed new photographs with both, so that a rollback finds nothing missing.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.identities import enforcement
from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.tables.schema import now
from infra.catalog.tables.upgrades import Upgrade, UpgradeStatus
from infra.catalog.versioning import upgrades
from infra.catalog.work.runs import close_dead_runs
from infra.evaluations import Evaluations
from infra.ray_cluster import device
from infra.registry import CHALLENGER, CHAMPION, Registry
from infra.settings import Settings
from infra.words import count
from models.spec import Role
from tasks.group import group_version
from tasks.model_version import ModelVersion, find_version, load_network
from tasks.recipe import current_recipe, enter_versions, version_for, version_of_row
from tasks.search_index import forget_erased
from tasks.versioning.at_work import champion_at_work
from tasks.versioning.backfill import Embedder, Trial, try_out
from tasks.versioning.bridge import Measures, measures_of
from tasks.versioning.gate import Verdict, judge
from tasks.versioning.install import promote

SAMPLE = 16  # faces on which speed and source are measured
NO_RUN = 0  # stands for the run where no night has grouped a face


class PromotionRefused(ValueError):
    """The gate does not let a version pass; the message says why, and how to go on."""


class NoUpgrade(LookupError):
    """There is no upgrade that could be gone on with, or back from."""


class RollbackIncomplete(RuntimeError):
    """The former version lacks embeddings."""


class CannotRetire(ValueError):
    """A version is in use."""


@dataclass(frozen=True)
class Plan:
    """What an upgrade takes. `faces`: all that may have embeddings; `missing`: those without the target's."""

    target: str
    former: str
    faces: int
    missing: int
    source: str
    crop_agreement: float | None
    faces_per_second: float | None

    @property
    def seconds(self) -> float | None:
        """Estimated from the speed measured on a few faces; None where none could be embedded."""
        return self.missing / self.faces_per_second if self.faces_per_second else None


@dataclass(frozen=True)
class Promotion:
    """What became of a promotion. Without a plan the version is champion at once: nothing in the catalog depends on it.

    `before`: the champion's number until now.
    """

    version: ModelVersion
    before: int | None
    plan: Plan | None = None
    verdict: Verdict | None = None
    forced: bool = False


@dataclass(frozen=True)
class Progress:
    """How far an upgrade has got. `given_up`: faces that could not be embedded, which the next night looks at again."""

    target: str
    former: str
    status: str
    verdict: str
    reason: str
    forced: bool
    faces: int
    missing: int
    given_up: int
    source: str
    faces_per_second: float | None
    planned_at: datetime
    worked_at: datetime | None
    switched_at: datetime | None
    bridge: Measures | None

    @property
    def seconds_left(self) -> float | None:
        return self.missing / self.faces_per_second if self.faces_per_second else None


def start(catalog: Catalog, settings: Settings, reference: str, force: bool = False) -> Promotion:
    """Promote a version. What the catalog's embeddings are made with is replaced by a backfill, which this plans.

    Any other version is champion at once. The gate's verdict and reason are kept with the version, whatever they are.

    Raises:
        UnknownModel, NotInstalled, WeightsError, CheckpointMismatch: if the version cannot be used on this machine.
        PromotionRefused: if the gate does not let it pass and `force` is not given.
    """
    version = find_version(reference, settings.weights_folder, settings.mlflow_uri)
    champion = champion_at_work(catalog, settings, reference)
    if champion is None:
        return Promotion(*promote(reference, settings.weights_folder, settings.mlflow_uri))
    load_network(version)
    registry = Registry(settings.mlflow_uri)
    verdict = _judged(catalog, settings, champion, version)
    _note(registry, version, champion, verdict, force)
    with catalog.write() as session:
        ids = enter_versions(session, [champion, version])
    if not (verdict.passed or force):
        _enter(catalog, settings, ids, champion, version, verdict, UpgradeStatus.REFUSED, False, Trial("", None, None))
        raise PromotionRefused(f"{verdict.reason}. --force promotes it all the same.")
    trial = _try_out(catalog, settings, version, ids[version.contract], ids[champion.contract])
    forced = force and not verdict.passed
    _enter(catalog, settings, ids, champion, version, verdict, UpgradeStatus.BACKFILLING, forced, trial)
    registry.point(version.name, CHALLENGER, version.version)
    before = registry.at(version.name, CHAMPION)
    with catalog.read() as session:
        plan = Plan(
            version.reference,
            champion.reference,
            upgrades.count_faces(session),
            upgrades.count_lacking(session, ids[version.contract]),
            trial.source,
            trial.crop_agreement,
            trial.faces_per_second,
        )
    return Promotion(version, None if before is None else before.version, plan, verdict, forced)


def _judged(catalog: Catalog, settings: Settings, champion: ModelVersion, version: ModelVersion) -> Verdict:
    verdict = judge(Evaluations(settings.mlflow_uri), champion, version)
    if verdict.passed:
        with catalog.write() as session:
            ids = enter_versions(session, [version])
            calibrated = session.get_one(ModelVersionRow, ids[version.contract]).calibration is not None
        if not calibrated:
            reason = (
                f"{version.reference} is not calibrated, so that it could group nobody; 'visage evaluate verification' "
                "calibrates it"
            )
            return Verdict("not calibrated", reason, verdict.compared)
    return verdict


def _note(registry: Registry, version: ModelVersion, champion: ModelVersion, verdict: Verdict, force: bool) -> None:
    notes = {
        "gate_verdict": verdict.verdict,
        "gate_reason": verdict.reason,
        "gate_champion": champion.reference,
        "gate_forced": str(force and not verdict.passed),
        "gate_at": now().isoformat(timespec="seconds"),
    }
    for key, value in notes.items():
        registry.tag(version.name, version.version, key, value)


def _enter(
    catalog: Catalog,
    settings: Settings,
    ids: dict[str, int],
    champion: ModelVersion,
    version: ModelVersion,
    verdict: Verdict,
    status: UpgradeStatus,
    forced: bool,
    trial: Trial,
) -> None:
    asked = version_for(Role.EMBED, settings.embed_model, settings)
    with catalog.write() as session:
        if status is not UpgradeStatus.REFUSED:
            upgrades.settle(session)
        session.add(
            Upgrade(
                target_id=ids[version.contract],
                former_id=ids[champion.contract],
                asked=asked.contract,
                status=status.value,
                verdict=verdict.verdict,
                reason=verdict.reason,
                forced=forced,
                source=trial.source,
                crop_agreement=trial.crop_agreement,
                faces_per_second=trial.faces_per_second,
            )
        )


def _try_out(catalog: Catalog, settings: Settings, version: ModelVersion, target_id: int, former_id: int) -> Trial:
    with catalog.read() as session:
        probe = Upgrade(id=0, target_id=target_id, former_id=former_id)
        contents = upgrades.contents_to_embed(session, probe)[:SAMPLE]
        faces = upgrades.faces_to_embed(session, probe, contents.tolist())[:SAMPLE]
    embedder = Embedder(settings, version, device())
    try:
        return try_out(embedder, faces)
    finally:
        embedder.close()


def under_way(session: Session) -> Upgrade:
    """The upgrade whose backfill is to be done.

    Raises:
        NoUpgrade: if none is.
    """
    upgrade = upgrades.latest(session)
    if upgrade is None or upgrade.status != UpgradeStatus.BACKFILLING.value:
        raise NoUpgrade("no upgrade is under way; 'visage models promote NAME@VERSION' plans one")
    return upgrade


def hold(session: Session, upgrade_id: int) -> None:
    """Keep an upgrade under way until this transaction ends.

    Raises:
        NoUpgrade: if it is no longer.
    """
    mine = select(Upgrade.status).where(Upgrade.id == upgrade_id)
    if session.scalar(mine.with_for_update(key_share=True)) != UpgradeStatus.BACKFILLING.value:
        raise NoUpgrade("the upgrade was called off meanwhile; 'visage models promote NAME@VERSION' plans it again")


def progress(session: Session) -> Progress:
    """How far the latest upgrade has got.

    Raises:
        NoUpgrade: if there has been none.
    """
    upgrade = upgrades.latest(session)
    if upgrade is None:
        raise NoUpgrade("no model has been upgraded yet; 'visage models promote NAME@VERSION' plans it")
    target, former = (session.get_one(ModelVersionRow, v) for v in (upgrade.target_id, upgrade.former_id))
    return Progress(
        f"{target.name}@{target.version}",
        f"{former.name}@{former.version}",
        upgrade.status,
        upgrade.verdict,
        upgrade.reason,
        upgrade.forced,
        upgrades.count_faces(session),
        upgrades.count_lacking(session, target.id, upgrade.id),
        upgrades.count_given_up(session, upgrade.id),
        upgrade.source,
        upgrade.faces_per_second,
        upgrade.planned_at,
        upgrade.worked_at,
        upgrade.switched_at,
        measures_of(upgrade),
    )


def switch(catalog: Catalog, settings: Settings) -> bool:
    """Let queries and nights use the target from now on, if every face has it and no night is at work; else say False.

    People are grouped under the target first, unseen; what was decided meanwhile is carried over in the switch itself.

    Raises:
        NoUpgrade: if none is under way.
    """
    with catalog.read() as session:
        upgrade = under_way(session)
        target = session.get_one(ModelVersionRow, upgrade.target_id)
        if upgrades.count_lacking(session, target.id, upgrade.id):
            return False
    group_version(catalog, target.id, NO_RUN, settings)
    with catalog.write() as session:
        exclusive(session, upgrades.SERVING)
        exclusive(session, enforcement.PEOPLE)
        upgrade = under_way(session)
        if close_dead_runs(session) or upgrades.count_lacking(session, target.id, upgrade.id):
            return False
        enforcement.carry_over(session, target.id)  # what people decided since they were grouped
        enforcement.carry_expired(session, upgrade.former_id, target.id)
        _serve(session, settings, upgrade.former_id, target.id)
        upgrade.status, upgrade.switched_at = UpgradeStatus.SWITCHED.value, now()
    Registry(settings.mlflow_uri).point(target.name, CHAMPION, target.version)
    return True


def _serve(session: Session, settings: Settings, former_id: int, target_id: int) -> None:
    """Change what queries use, and what recipe the photographs were done by."""
    former, target = (version_of_row(session.get_one(ModelVersionRow, v), settings) for v in (former_id, target_id))
    for collection in collections.every(session):
        old, new = (
            current_recipe(settings, frozenset(collection.sensitive_attributes), embedder)
            for embedder in (former, target)
        )
        # A version that wants some faces restored has their vectors as photographed: the next night does them anew.
        if new.decision is None or not new.decision.ranges:
            upgrades.relabel(session, collection.id, old.digest, new.digest, target_id)
    upgrades.serve(session, target_id)


def rollback(catalog: Catalog, settings: Settings, name: str) -> tuple[str, str]:
    """Let queries and nights use the version again that was replaced; returns references of the replaced and of this one.

    Nothing is computed. During a backfill the upgrade is called off.

    Raises:
        NoUpgrade: if no upgrade to a version of this model is in force.
        RollbackIncomplete: if the former version lacks embeddings.
    """
    with catalog.write() as session:
        exclusive(session, upgrades.SERVING)
        upgrade = upgrades.latest(session)
        target = None if upgrade is None else session.get_one(ModelVersionRow, upgrade.target_id)
        possible = (UpgradeStatus.BACKFILLING.value, UpgradeStatus.SWITCHED.value)
        if upgrade is None or target is None or target.name != name or upgrade.status not in possible:
            raise NoUpgrade(f"no upgrade to a version of {name} is in force that could be rolled back")
        former = session.get_one(ModelVersionRow, upgrade.former_id)
        if upgrade.status == UpgradeStatus.SWITCHED.value:
            lacking = upgrades.count_visible_lacking(session, former.id)
            if lacking:
                raise RollbackIncomplete(
                    f"{count(lacking, 'face has', 'faces have')} no embedding by {former.name}@{former.version}; "
                    f"'visage models promote "
                    f"{former.name}@{former.version} --force' plans a backfill that makes them and then switches"
                )
            exclusive(session, enforcement.PEOPLE)
            enforcement.carry_over(session, former.id)
            enforcement.carry_expired(session, target.id, former.id)
            _serve(session, settings, target.id, former.id)
        upgrade.status, upgrade.ended_at = UpgradeStatus.ROLLED_BACK.value, now()
    Registry(settings.mlflow_uri).point(former.name, CHAMPION, former.version)
    return f"{target.name}@{target.version}", f"{former.name}@{former.version}"


def retire(catalog: Catalog, settings: Settings, reference: str) -> dict[str, int]:
    """Delete what an embedding version has made of the catalog; returns how many rows of each table went.

    Raises:
        UnknownModel, NotInstalled: if there is no such version.
        CannotRetire: if queries use it, it has made nothing, or a run is at work, which may embed with it.
    """
    version = find_version(reference, settings.weights_folder, settings.mlflow_uri)
    with catalog.write() as session:
        exclusive(session, upgrades.SERVING)
        exclusive(session, enforcement.PEOPLE)
        row = session.scalar(select(ModelVersionRow).where(ModelVersionRow.contract == version.contract))
        if row is None or version.spec.role is not Role.EMBED:
            raise CannotRetire(f"{version.reference} has made no embeddings here")
        if row.serving:
            raise CannotRetire(f"{version.reference} is what queries use; promote another version, or roll back, first")
        alive = close_dead_runs(session)
        if alive:
            raise CannotRetire(f"run {alive[0].id} is at work and may embed with it; wait for it, or stop it first")
        upgrades.settle(session, row.id)
        counts = upgrades.delete_version(session, row.id)
    forget_erased(catalog, settings)
    Registry(settings.mlflow_uri).tag(version.name, version.version, "retired_at", now().isoformat(timespec="seconds"))
    return counts
