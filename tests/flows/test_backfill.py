"""From one embedding model to another without a moment in which queries miss anything, and back, on real faces."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, update

from flows import opening
from flows.backfill import run_backfill
from infra.catalog import collections
from infra.catalog.custody import retention
from infra.catalog.database import Catalog
from infra.catalog.search.vectors import journal_position, vectors_of
from infra.catalog.tables.schema import (
    Collection,
    Embedding,
    EmbeddingChange,
    Face,
    FaceIdentity,
    Identity,
    Image,
    ModelVersion,
)
from infra.catalog.tables.upgrades import Upgrade
from infra.catalog.versioning import upgrades
from infra.catalog.versioning.versions import serving
from infra.registry import CHAMPION, Registry
from infra.settings import PREFIX, Settings, load_settings
from infra.storage.base import LITTER
from infra.tracking import track
from tasks.evaluation.verification import evaluate
from tasks.identities import decisions
from tasks.model_version import ModelVersion as Version
from tasks.model_version import find_version
from tasks.search import search_photo
from tasks.versioning import upgrade
from tasks.versioning.backfill import Embedded, Embedder, rest_seconds
from tests.archive import calibration
from tests.command import visage
from tests.pairs import few_pairs, pictures
from tests.portraits import jpeg, mirrored, pair, portrait
from tests.runs import run

OLD, NEW = "dlib-resnet@1", "lightcnn-9@1"


@pytest.fixture(scope="session")
def before_upgrade(two_embedders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photographs and a home that knows their 4 faces by the old version, to be copied."""
    folder = tmp_path_factory.mktemp("before-upgrade")
    (folder / "photos").mkdir()
    for name, pixels in {"a": portrait(), "b": mirrored(200), "c": pair()}.items():
        (folder / "photos" / f"{name}.jpg").write_bytes(jpeg(pixels))
    (folder / "home").mkdir()
    shutil.copyfile(two_embedders / "mlflow.db", folder / "home" / "mlflow.db")
    settings = Settings(
        home=folder / "home", weights=two_embedders / "weights", engine="inline", restore_model="", describe_models=()
    )
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        collections.add(session, "archive", str(folder / "photos"), [], list(LITTER), [])
    catalog.close()
    run(settings)
    return folder


@pytest.fixture
def settings(before_upgrade: Path, two_embedders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a copy of `before_upgrade`, which are the environment's as well."""
    shutil.copytree(before_upgrade / "photos", tmp_path / "photos")
    shutil.copytree(before_upgrade / "home", tmp_path / "home")
    values = {
        "HOME": tmp_path / "home",
        "WEIGHTS": two_embedders / "weights",
        "ENGINE": "inline",
        "RESTORE_MODEL": "",
        "DESCRIBE_MODELS": "[]",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"{PREFIX}{name}", str(value))
    loaded = load_settings()
    catalog = Catalog(loaded.catalog_url)
    with catalog.write() as session:
        session.execute(update(Collection).values(uri=str(tmp_path / "photos")))
    catalog.close()
    return loaded


def version(settings: Settings, reference: str) -> Version:
    return find_version(reference, settings.weights_folder, settings.mlflow_uri)


def counts(settings: Settings) -> dict[str, int]:
    """Embeddings by the model that made them."""
    with Catalog(settings.catalog_url).read() as session:
        statement = (
            select(ModelVersion.name, func.count())
            .join(Embedding, Embedding.model_version_id == ModelVersion.id)
            .group_by(ModelVersion.name)
        )
        return dict(session.execute(statement).tuples().all())


def found(settings: Settings) -> tuple[str, list[tuple[int, float]]]:
    """Which model answers a search, and what it finds."""
    with Catalog(settings.catalog_url).read() as session:
        [answer] = search_photo(session, settings, Path(os.environ[f"{PREFIX}HOME"]).parent / "photos" / "a.jpg", 10)
        return answer.model, [(match.face.face_id, match.similarity) for match in answer.matches]


def evaluated(settings: Settings, reference: str, errors: int, pairs: int = 200) -> None:
    """Keep an evaluation on pairs, of which the model gets so many wrong; and its calibration."""
    model, half = version(settings, reference), pairs // 2
    same = np.arange(pairs) < half
    similarities = np.where(same, 0.95, 0.6) + 1e-4 * np.arange(pairs) / pairs
    similarities[:errors] = 0.3
    report = evaluate(similarities, same, np.arange(pairs) % 10, nan_is_missing_face=True)
    with track(settings.mlflow_uri, settings.artifacts_folder, "verification", reference, {}) as tracked:
        tracked.params(
            {
                "contract": model.contract,
                "detector": "mtcnn@1",
                "images": "faces",
                "pairs": "pairs.csv",
                "pairs_sha256": "1",
            }
        )
        tracked.text(report.model_dump_json(), "report.json")
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        ids = upgrade.enter_versions(session, [model])
        curve = calibration(model.contract).model_dump(mode="json")
        session.execute(update(ModelVersion).where(ModelVersion.id == ids[model.contract]).values(calibration=curve))
    catalog.close()


def promoted(settings: Settings, force: bool = True) -> upgrade.Promotion:
    catalog = Catalog(settings.catalog_url)
    try:
        return upgrade.start(catalog, settings, NEW, force)
    finally:
        catalog.close()


def test_queries_and_nights_stay_with_the_old_version_until_every_face_has_the_new_one(
    settings: Settings, tmp_path: Path
) -> None:
    before = found(settings)
    evaluated(settings, OLD, errors=2)
    evaluated(settings, NEW, errors=2)
    plan = promoted(settings, force=False).plan
    assert plan is not None
    assert (plan.target, plan.former, plan.faces, plan.missing, plan.source) == (NEW, OLD, 4, 4, "crops")
    assert plan.crop_agreement is not None
    assert plan.crop_agreement > 0.999
    assert plan.seconds is not None
    assert 0 < plan.seconds < 60
    assert found(settings) == before

    (tmp_path / "photos" / "new.jpg").write_bytes(jpeg(portrait(300)))
    assert run(settings).tally.images == 1
    assert counts(settings) == {"dlib-resnet": 5, "lightcnn-9": 1}  # the new face got both
    assert found(settings)[0] == OLD

    done = run_backfill(settings)
    assert (done.status, done.missing, done.given_up) == ("switched", 0, 0)
    assert counts(settings) == {"dlib-resnet": 5, "lightcnn-9": 5}
    model, matches = found(settings)
    assert model == NEW
    assert {face for face, _ in matches} == set(range(1, 6))
    assert Registry(settings.mlflow_uri).at("lightcnn-9", CHAMPION) is not None
    assert run(settings).tally.images == 0  # nothing is done twice
    with Catalog(settings.catalog_url).read() as session:
        served = serving(session)
        assert served is not None
        assert upgrades.count_ungrouped(session, served.id) == 0


@pytest.mark.slow
def test_rollback_is_instant_and_exact(settings: Settings, tmp_path: Path) -> None:
    before = found(settings)
    promoted(settings)
    run_backfill(settings)
    assert found(settings)[0] == NEW
    (tmp_path / "photos" / "new.jpg").write_bytes(jpeg(portrait(300)))
    run(settings)
    assert counts(settings) == {"dlib-resnet": 5, "lightcnn-9": 5}  # so that the way back stays open

    (tmp_path / "photos" / "new.jpg").unlink()
    run(settings)
    with Catalog(settings.catalog_url).read() as session:
        position = journal_position(session)
    ended = visage("models", "rollback", "lightcnn-9")
    assert ended.code == 0, ended.err
    with Catalog(settings.catalog_url).read() as session:
        assert journal_position(session) == position  # instant: no vector was made, moved or deleted
    assert found(settings) == before
    assert run(settings).tally.images == 0
    assert "no upgrade to a version of lightcnn-9 is in force" in visage("models", "rollback", "lightcnn-9").err


def test_a_worse_challenger_is_refused_and_the_reason_is_stored(settings: Settings) -> None:
    evaluated(settings, OLD, errors=2)
    evaluated(settings, NEW, errors=60)
    ended = visage("models", "promote", NEW)
    assert ended.code == 1
    assert f"{NEW} is worse than {OLD} on pairs.csv: accuracy" in ended.err
    assert "--force promotes it all the same" in ended.err
    tags = Registry(settings.mlflow_uri).versions("lightcnn-9")[0].tags
    assert (tags["gate_verdict"], tags["gate_champion"], tags["gate_forced"]) == ("worse", OLD, "False")
    assert "TAR at FAR 1.0%" in tags["gate_reason"]
    with Catalog(settings.catalog_url).read() as session:
        row = session.scalars(select(Upgrade)).one()
        assert (row.status, row.reason) == ("refused", tags["gate_reason"])
    assert f"Gate for {NEW}: worse." in visage("models", "show", "lightcnn-9").out
    assert counts(settings) == {"dlib-resnet": 4}
    assert "no model has been upgraded yet" in visage("backfill", "status").out

    forced = visage("models", "promote", NEW, "--force", "--json")
    assert forced.code == 0, forced.err
    assert (forced.json["forced"], forced.json["plan"]["missing"], forced.json["verdict"]["verdict"]) == (
        True,
        4,
        "worse",
    )
    status = visage("backfill", "status", "--json").json
    assert (status["status"], status["forced"], status["missing"]) == ("backfilling", True, 4)


def test_what_was_never_evaluated_is_refused_with_the_command_that_evaluates_it(settings: Settings) -> None:
    ended = visage("models", "promote", NEW)
    assert ended.code == 1
    assert f"no evaluation of {OLD} and {NEW} is stored. 'visage evaluate verification --model" in ended.err
    assert visage("models", "promote", NEW, "--images", ".").code == 2


@pytest.mark.slow
def test_retiring_deletes_the_rows_of_a_version_that_nobody_uses(settings: Settings) -> None:
    promoted(settings)
    run_backfill(settings)
    refused = visage("models", "retire", NEW)
    assert (refused.code, "is what queries use" in refused.err) == (1, True)
    ended = visage("models", "retire", OLD, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["embedding"] == 4
    assert counts(settings) == {"lightcnn-9": 4}
    assert "no upgrade" in visage("models", "rollback", "lightcnn-9").err
    assert run(settings).tally.images == 0  # the catalog stays with the new version
    assert found(settings)[0] == NEW


def test_a_backfill_ends_when_its_upgrade_is_called_off_and_writes_nothing_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(settings)
    embed = Embedder.__call__

    def called_off_meanwhile(self: Embedder, faces: Sequence[upgrades.FaceToEmbed], source: str) -> Embedded:
        for ended in (visage("models", "rollback", "lightcnn-9"), visage("models", "retire", NEW)):
            assert ended.code == 0, ended.err
        return embed(self, faces, source)

    monkeypatch.setattr(Embedder, "__call__", called_off_meanwhile)
    with pytest.raises(upgrade.NoUpgrade, match="called off meanwhile"):
        run_backfill(settings)
    assert counts(settings) == {"dlib-resnet": 4}


def test_no_version_is_retired_while_a_run_may_embed_with_it(settings: Settings) -> None:
    promoted(settings)
    refused = []

    def retire() -> None:
        refused.append(visage("models", "retire", NEW))

    run(settings, after_discovery=retire)
    assert (refused[0].code, "is at work and may embed with it" in refused[0].err) == (1, True)
    assert visage("models", "retire", NEW).code == 0


def test_a_run_that_opens_while_a_version_is_retired_does_not_embed_with_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(settings)
    models = opening._models

    def retired_meanwhile(*arguments: Any) -> object:
        found = models(*arguments)
        monkeypatch.setattr(opening, "_models", models)
        assert visage("models", "retire", NEW).code == 0
        return found

    monkeypatch.setattr(opening, "_models", retired_meanwhile)
    (tmp_path / "photos" / "new.jpg").write_bytes(jpeg(portrait(300)))
    assert run(settings).tally.images == 1
    assert counts(settings) == {"dlib-resnet": 5}


@pytest.mark.slow
def test_a_photograph_stands_in_for_a_lost_crop_and_a_crop_for_a_lost_photograph(
    settings: Settings, tmp_path: Path
) -> None:
    promoted(settings)
    with Catalog(settings.catalog_url).read() as session:
        keys = dict(
            session.execute(select(Image.key, Face.crop_key).join(Face, Face.content_id == Image.content_id))
            .tuples()
            .all()
        )
    crops = Path(settings.crops_uri.removeprefix("file://"))
    (tmp_path / "photos" / "a.jpg").unlink()
    (crops / keys["b.jpg"]).unlink()
    assert run_backfill(settings).given_up == 0
    assert counts(settings) == {"dlib-resnet": 4, "lightcnn-9": 4}


@pytest.mark.slow
def test_a_face_of_which_nothing_is_left_does_not_hold_up_the_others(settings: Settings, tmp_path: Path) -> None:
    promoted(settings)
    with Catalog(settings.catalog_url).read() as session:
        a_jpg = select(Face.crop_key).join(Image, Image.content_id == Face.content_id).where(Image.key == "a.jpg")
        key = session.scalar(a_jpg)
    assert key is not None
    (Path(settings.crops_uri.removeprefix("file://")) / key).unlink()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(portrait(), quality=60))  # another picture now
    done = run_backfill(settings)
    assert (done.status, done.given_up) == ("switched", 1)
    assert run(settings).tally.images == 1
    assert counts(settings)["lightcnn-9"] == 4


@pytest.mark.slow
def test_what_people_decided_and_where_expired_faces_belong_holds_after_a_backfill(settings: Settings) -> None:
    evaluated(settings, NEW, errors=2)  # calibrated, so that people are grouped by it
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        person = session.scalars(select(Identity.id)).first()
        assert person is not None
        decisions.name(session, "ada", person, "Eileen Collins")
        expired = session.scalars(select(FaceIdentity.face_id).where(FaceIdentity.identity_id > person)).first()
        assert expired is not None
        retention.expire(session, "ada", session.scalars(select(Collection)).one(), [expired])
    promoted(settings)
    with catalog.write() as session:
        members = list(session.scalars(select(FaceIdentity.face_id).where(FaceIdentity.identity_id == person)))
        decisions.confirm(session, "ada", members[:1], person)
    run_backfill(settings)
    with catalog.read() as session:
        served = serving(session)
        assert served is not None
        assert f"{served.name}@{served.version}" == NEW
        theirs = (
            select(FaceIdentity.face_id)
            .join(Identity, Identity.id == FaceIdentity.identity_id)
            .where(Identity.name == "Eileen Collins", Identity.model_version_id == served.id)
        )
        assert set(session.scalars(theirs)) >= set(members[:1])
        assert session.get_one(FaceIdentity, (expired, served.id)).identity_id is not None
    catalog.close()


@pytest.mark.slow
def test_one_search_sees_both_versions_through_the_bridge(settings: Settings, tmp_path: Path) -> None:
    promoted(settings)
    photo = tmp_path / "photos" / "a.jpg"
    [unseen] = visage("backfill", "search", photo, "--json").json
    assert (unseen["matches"], unseen["unseen"], unseen["method"]) == ([], 4, "exact, no bridge yet")
    assert [row["action"] for row in visage("audit", "list", "--json").json] == ["search.upgrade"]

    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        way = upgrade.under_way(session)
        faces = upgrades.faces_to_embed(session, way, upgrades.contents_to_embed(session, way).tolist())
        ids, former = vectors_of(session, way.former_id, 128, np.array([face.face_id for face in faces]))
    embedder = Embedder(settings, version(settings, NEW), "cpu")
    made = embedder(faces, "photographs").vectors
    embedder.close()
    target = np.stack([made[face] for face in ids.tolist()])
    native = int(ids[0])
    with catalog.write() as session:
        upgrades.put_backfilled(session, way, {native: made[native]}, {}, 1.0)
        session.get_one(Upgrade, way.id).bridge = np.linalg.lstsq(former, target)[0].reshape(-1)
    [seen] = visage("backfill", "search", photo, "--json").json
    catalog.close()
    assert (seen["model"], seen["method"]) == (NEW, f"exact, through the bridge from {OLD}")
    bridged = {match["face"]["face_id"]: match["bridged"] for match in seen["matches"]}
    assert bridged == {face: face != native for face in ids.tolist()}
    query = made[next(face.face_id for face in faces if face.key == "a.jpg")]
    for match in seen["matches"]:  # four faces are carried over exactly by a map of 128 numbers
        assert match["similarity"] == pytest.approx(float(made[match["face"]["face_id"]] @ query), abs=1e-3)
    assert found(settings)[0] == OLD


def test_rest_keeps_to_the_rate_and_to_the_share() -> None:
    assert rest_seconds(faces=10, seconds=1.0, rate=None, share=1.0) == 0
    assert rest_seconds(faces=10, seconds=1.0, rate=5, share=1.0) == 1
    assert rest_seconds(faces=10, seconds=3.0, rate=5, share=1.0) == 0
    assert rest_seconds(faces=10, seconds=1.0, rate=None, share=0.25) == 3


SLOWLY = """
from flows import backfill
from infra.settings import load_settings
backfill.GROUP = 1
backfill.run_backfill(load_settings(), rate=0.05)
"""


@pytest.mark.slow
def test_killed_backfill_resumes_without_duplicates(settings: Settings) -> None:
    promoted(settings)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    deadline = time.monotonic() + 60
    while counts(settings).get("lightcnn-9", 0) == 0:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = counts(settings)["lightcnn-9"]
    assert made < 4
    assert found(settings)[0] == OLD
    assert run_backfill(settings).status == "switched"
    assert counts(settings)["lightcnn-9"] == 4
    with Catalog(settings.catalog_url).read() as session:
        served = serving(session)
        assert served is not None
        written = list(
            session.scalars(select(EmbeddingChange.face_id).where(EmbeddingChange.model_version_id == served.id))
        )
        assert sorted(written) == [1, 2, 3, 4]  # each once: what was there was not made again


@pytest.mark.long
def test_several_processes_share_a_backfill_and_make_each_vector_once(settings: Settings) -> None:
    promoted(settings)
    slowly = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", SLOWLY.replace("0.05", "0.25")], env=slowly) as other:
        while counts(settings).get("lightcnn-9", 0) == 0:
            assert other.poll() is None
            time.sleep(0.1)
        assert run_backfill(settings).status == "switched"
        assert counts(settings)["lightcnn-9"] == 4
        assert other.wait(timeout=60) == 0  # it finds all done
    with Catalog(settings.catalog_url).read() as session:
        served = serving(session)
        assert served is not None
        written = select(EmbeddingChange.face_id).where(EmbeddingChange.model_version_id == served.id)
        assert sorted(session.scalars(written)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_real_pairs_given_with_the_promotion_decide_it(settings: Settings, tmp_path: Path) -> None:
    """LightCNN-9 with weights of chance recognises nobody, and is found out."""
    options = ("--images", pictures(), "--pairs", few_pairs(tmp_path, count=3))
    ended = visage("models", "promote", NEW, *options)
    assert ended.code == 1
    assert f"{NEW} is worse than {OLD}" in ended.err
