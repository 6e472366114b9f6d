"""A collection travels as one file: what arrives is what left, under numbers of its own, whole or not at all."""

import io
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from sqlalchemy import LargeBinary, func, select, type_coerce, update
from sqlalchemy.orm import Session

from flows import night as steps
from flows.night import night
from infra.archive_file import MANIFEST, InvalidArchive, open_archive
from infra.catalog import collections, encryption
from infra.catalog.collections import CollectionExists
from infra.catalog.custody import audit
from infra.catalog.database import Catalog
from infra.catalog.encryption import EmbeddingsLocked
from infra.catalog.exchange.portable import CARRIED, STAYS
from infra.catalog.identities.decisions import history
from infra.catalog.identities.enforcement import PEOPLE
from infra.catalog.queries.questions import ask
from infra.catalog.search.vectors import has_index
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import Exhibit, Suppression
from infra.catalog.tables.schema import (
    Base,
    Collection,
    Content,
    Embedding,
    Erasure,
    Face,
    FaceIdentity,
    Identity,
    Image,
    ModelVersion,
    Run,
    now,
)
from infra.catalog.versioning.upgrades import SERVING
from infra.catalog.versioning.versions import serving
from infra.catalog.work.runs import close_dead_runs, hold, open_run
from infra.settings import Settings
from infra.storage import open_store
from tasks.custody import encryption as embeddings
from tasks.custody import erase
from tasks.exchange import archive_import
from tasks.exchange.archive import CannotArchive, archive
from tasks.exchange.archive_contents import rows_of
from tasks.exchange.archive_import import Imported, VersionConflict, import_archive
from tasks.identities import decisions
from tasks.nights.collections import InvalidCollection
from tasks.search import nearest
from tasks.thumbnails import Size, keep, thumbnail
from tests.command import visage
from tests.made_up import Crowd

NAME = "Eileen Collins"
LIMIT = 2**24


def opened(settings: Settings) -> Catalog:
    return Catalog(settings.catalog_url)


@pytest.fixture(scope="module")
def source(processed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the settings of a home with the processed collection, in which people decided things and looked at photos."""
    home = tmp_path_factory.mktemp("source") / "home"
    shutil.copytree(processed.home_folder, home)
    settings = processed.model_copy(update={"home": home})
    catalog = opened(settings)
    with catalog.write() as session:
        session.execute(update(ModelVersion).where(ModelVersion.role == "embed").values(serving=True))
        collection = collections.by_name(session, "archive")
        collection.legal_basis, collection.consent_note, collection.retention_days = "consent", "in the safe", 9999
        faces = list(session.scalars(select(Face.id).order_by(Face.id)))
        someone = session.scalar(select(FaceIdentity.identity_id).where(FaceIdentity.identity_id.is_not(None)))
        assert someone is not None
        decisions.name(session, "Ada", someone, "nobody")
        decisions.name(session, "Ada", someone, NAME)
        decisions.confirm(session, "Ben", faces[:1], someone)
        decisions.undo(session, "Ben", decisions.ignore(session, "Ada", faces[-1:]).decision_id)
        image = session.scalars(select(Image).where(Image.key == "a.jpg")).one()
        content = session.get_one(Content, image.content_id)
        small = thumbnail(settings, collection.uri, image.key, image.etag, content.sha256, Size.SMALL)
        keep(settings, content.sha256, Size.SMALL, small)
    catalog.close()
    return settings


@pytest.fixture(scope="module")
def file(source: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive of that collection."""
    path = tmp_path_factory.mktemp("file") / "archive.visage"
    made = archive(opened(source), source, "archive", path, "tests")
    assert (made.photos, made.faces, made.decrypted) == (7, 4, False)
    assert made.objects == 4 + 1 + 1  # crops, a restored one, a thumbnail
    return path


@pytest.fixture
def target(source: Settings, catalog: Catalog, tmp_path: Path) -> Settings:
    """Return the settings of another home, whose catalog holds other people already: the test runs once per engine."""
    crowd = Crowd(catalog, spread=0.4)
    for _ in range(7):
        crowd.photo(1, 2)
    crowd.night()
    with catalog.write() as session:
        decisions.name(session, "Cleo", next(iter(session.scalars(select(Identity.id)))), "Somebody else")
    return source.model_copy(update={"home": tmp_path / "other", "database_url": catalog.url})


@pytest.fixture
def empty(source: Settings, fresh_catalog_url: Callable[[str], str], tmp_path: Path) -> Settings:
    """Return the settings of another home with nothing in it."""
    return source.model_copy(update={"home": tmp_path / "empty", "database_url": fresh_catalog_url("sqlite")})


def taken_in(settings: Settings, path: Path, name: str | None = None) -> Imported:
    catalog = opened(settings)
    try:
        return import_archive(catalog, settings, path, "tests", name)
    finally:
        catalog.close()


def objects(settings: Settings) -> dict[str, bytes]:
    """The objects of a home by what of their keys does not depend on it."""
    store = open_store(settings.crops_uri)
    keys = [entry.key for page in store.list() for entry in page] if Path(settings.crops_uri).is_dir() else []
    return {key.partition("/")[2]: store.read(key, LIMIT).data for key in keys}


def count(settings: Settings, entity: type[Base]) -> int:
    with opened(settings).read() as session:
        return session.scalar(select(func.count()).select_from(entity)) or 0


def contents(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of an archive, with the place of a row in its table instead of its number."""
    file = open_archive(path, LIMIT)
    tables = {c.name: [row for page in rows_of(file, c) for row in page] for c in CARRIED}
    tables["run"] = [row for row in tables["run"] if not row["recipe"].startswith("import ")]
    for row in tables["collection"]:
        del row["name"], row["created_at"]  # it is added where it arrives
    for row in tables["run"]:
        del row["reported_at"]
    tables["model_version"].sort(key=lambda row: row["contract"])  # those that were known have other places
    places = {
        name: {row["id"]: n for n, row in enumerate(rows)} for name, rows in tables.items() if rows and "id" in rows[0]
    }
    for carried in CARRIED:
        for row in tables[carried.name]:
            for column, to in {**carried.refers, **({"id": carried.name} if "id" in row else {})}.items():
                row[column] = places[to].get(row[column]) if row[column] else row[column]
            for key in {"crop_key", "mask_key"} & row.keys():
                row[key] = row[key] and row[key].partition("/")[2]
            row.update({name: value.tobytes() for name, value in row.items() if isinstance(value, np.ndarray)})
        tables[carried.name].sort(key=lambda row: [str(row[c.name]) for c in carried.table.primary_key])
    return tables


def test_what_arrives_is_what_left(file: Path, target: Settings, source: Settings, tmp_path: Path) -> None:
    others = count(target, Face)
    taken = taken_in(target, file, "taken")
    assert (taken.photos, taken.faces, taken.held_photos, taken.held_faces, taken.left) == (7, 4, 0, 0, ())
    assert taken.lacking == 4  # queries use another version in this catalog
    assert count(target, Face) == others + 4
    assert objects(target) == objects(source)
    again = tmp_path / "again.visage"
    archive(opened(target), target, "taken", again, "tests")
    assert contents(again) == contents(file)
    assert len(list((target.home_folder / "thumbnails").rglob("*.jpg"))) == 1


def test_a_collection_is_added_when_it_arrives(file: Path, empty: Settings) -> None:
    before = now()
    taken_in(empty, file)
    with opened(empty).read() as session:
        assert collections.by_name(session, "archive").created_at > before


def test_people_keep_names_and_decisions_who_and_when(file: Path, target: Settings, source: Settings) -> None:
    taken_in(target, file)
    told = {}
    for settings in (source, target):
        with opened(settings).read() as session:
            found = [d for d in history(session, 100) if d.who != "Cleo"]
            told[settings.home] = [(d.kind, d.who, d.decided_at, d.name, d.undone_by, len(d.faces)) for d in found]
            names = set(session.scalars(select(Identity.name).where(Identity.name.is_not(None))))
            assert NAME in names
    assert told[source.home] == told[target.home]
    assert [row[0] for row in told[target.home]] == ["ignore", "confirm", "name", "name"]
    with opened(target).write() as session:
        latest = history(session, 3)
        decisions.undo(session, "Dee", latest[1].decision_id)  # what was decided there can be taken back here
        assert audit.entries(session, 10, "import")[0].who == "tests"


def test_search_finds_the_same_neighbours_in_an_empty_catalog(
    file: Path, source: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    settings = source.model_copy(update={"home": tmp_path / "other", "database_url": catalog.url})
    assert taken_in(settings, file).lacking == 0
    answers = []
    for place in (source, settings):
        with opened(place).read() as session:
            version = serving(session)
            assert version is not None
            query = session.scalars(select(Embedding.vector).order_by(Embedding.face_id)).first()
            assert query is not None
            (matches,) = nearest(session, version, query[None], 10, place)
            answers.append([(m.face.keys, m.face.box, m.similarity, m.probability) for m in matches])
            if session.get_bind().dialect.name == "postgresql":
                assert has_index(session.connection(), version.id)
    assert len(answers[0]) == 4
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_night_on_the_same_photographs_processes_nothing(file: Path, empty: Settings) -> None:
    taken_in(empty, file)
    with night(empty, "archive") as state:
        steps.discover_images(state)
        steps.process_images(state)
        steps.group_faces(state)
        audited = steps.audit_catalog(state)
    assert (state.discovery.unchanged, state.tally.images, state.grouped.grouped) == (7, 0, 0)
    assert audited.images == {"done": 5, "failed": 2}


@pytest.mark.slow
def test_photographs_with_other_times_are_only_read_again(
    file: Path, empty: Settings, source: Settings, tmp_path: Path
) -> None:
    with opened(source).read() as session:
        photos = shutil.copytree(
            collections.by_name(session, "archive").uri, tmp_path / "copy", copy_function=shutil.copy
        )
    catalog = opened(empty)
    import_archive(catalog, empty, file, "tests", uri=str(photos))
    with catalog.read() as session:
        before = [(face.id, face.found_at) for face in session.scalars(select(Face).order_by(Face.id))]
    with night(empty, "archive") as state:
        steps.discover_images(state)
        steps.process_images(state)
        steps.audit_catalog(state)
    assert (state.discovery.changed, state.tally.shared, state.tally.faces) == (7, 5, 0)
    with catalog.read() as session:
        assert [(face.id, face.found_at) for face in session.scalars(select(Face).order_by(Face.id))] == before


def test_an_import_and_a_switch_at_the_same_time_wait_for_each_other(
    file: Path, target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Event()

    def slowly(session: Session, run_id: int) -> None:
        hold(session, run_id)
        held.set()
        time.sleep(0.3)  # meanwhile the other one locks what it comes to first

    monkeypatch.setattr(archive_import, "hold", slowly)
    with ThreadPoolExecutor(1) as threads:
        importing = threads.submit(taken_in, target, file)
        assert held.wait(60)
        with opened(target).write() as session:  # as a switch does
            exclusive(session, SERVING)
            exclusive(session, PEOPLE)
            close_dead_runs(session)
        assert importing.result().photos == 7


# --- All or nothing


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["third object", "rows", "before the commit"])
def test_killed_import_leaves_nothing_half_and_goes_on(
    file: Path, empty: Settings, source: Settings, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(empty).close()
    child = os.fork()
    if child == 0:
        calls: list[object] = []
        real = archive_import.patient

        def counted(function: Any) -> Any:
            if function.__name__ == "put":
                calls.append(function)
                if len(calls) == 3:
                    die()
            return real(function)

        if moment == "third object":
            monkeypatch.setattr(archive_import, "patient", counted)
        elif moment == "rows":
            monkeypatch.setattr(archive_import, "enter_rows", die)
        else:
            monkeypatch.setattr(archive_import, "close_run", die)
        taken_in(empty, file)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [count(empty, entity) for entity in (Collection, Run, Image, Face, Embedding, Identity, Erasure)] == [
        1, 1, 0, 0, 0, 0, 0
    ]  # fmt: skip
    assert taken_in(empty, file).faces == 4
    assert objects(empty) == objects(source)
    with opened(empty).read() as session:
        runs = session.scalars(select(Run.status).where(Run.recipe.startswith("import ")).order_by(Run.id)).all()
        assert runs == ["crashed", "done"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attempts", "catalog_url"),
    [("the first", "sqlite"), ("the second, after one that was killed", "postgresql")],
    indirect=["catalog_url"],
)
def test_an_import_that_fails_leaves_all_as_before(
    file: Path, target: Settings, attempts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {e: count(target, e) for e in (Collection, Run, Content, Image, Face, Embedding, Identity, ModelVersion)}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive_import, "close_run", full)
        if attempts == "the second, after one that was killed":
            with patch.context() as killed:
                killed.setattr(archive_import, "_undo", lambda *_: None)
                with pytest.raises(OSError, match="no space left"):
                    taken_in(target, file)
            with opened(target).write() as session:
                session.execute(update(Run).values(process_started=1.0))
            assert objects(target) != {}
        with pytest.raises(OSError, match="no space left"):
            taken_in(target, file)
    assert {entity: count(target, entity) for entity in before} == before
    assert objects(target) == {}
    assert not list((target.home_folder / "thumbnails").rglob("*.jpg"))


def test_another_process_that_takes_the_same_in_is_not_disturbed(file: Path, empty: Settings) -> None:
    digest = open_archive(file, LIMIT).digest
    catalog = opened(empty)
    with catalog.write() as session:
        row = collections.add(session, "archive", "/photos", [], [], [])
        open_run(session, row.id, f"import {digest[:16]}")
    with pytest.raises(RuntimeError, match="has been at work since"):
        taken_in(empty, file)
    assert count(empty, Collection) == 1


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_a_name_that_is_taken_is_refused(file: Path, target: Settings) -> None:
    taken_in(target, file)
    with pytest.raises(CollectionExists, match="'archive' exists already; choose another name with --as"):
        taken_in(target, file)
    assert taken_in(target, file, "again").faces == 4
    with pytest.raises(InvalidCollection, match="is no name"):
        taken_in(target, file, "a/b")


# --- Erasure


def erased(settings: Settings, plan: Callable[..., erase.Plan], *arguments: object) -> None:
    catalog = opened(settings)
    with catalog.read() as session:
        planned = plan(session, *arguments)
    _, finished = erase.erase(catalog, settings, "officer", planned, "asked for")
    assert finished.left == ()
    catalog.close()


def of_pair(settings: Settings, collection: str) -> list[int]:
    with opened(settings).read() as session:
        return [face.face_id for face in ask(session, f'photo = c/pair.jpg and collection = "{collection}"', 10)]


@pytest.mark.slow
def test_what_was_erased_here_does_not_come_in_with_an_archive(file: Path, target: Settings) -> None:
    taken_in(target, file, "one")
    erased(target, erase.plan_image, "a.jpg", "one")
    erased(target, erase.plan_faces, of_pair(target, "one")[:1])
    taken = taken_in(target, file, "two")
    assert (taken.photos, taken.faces, taken.held_photos, taken.held_faces) == (5, 2, 2, 2)
    assert taken.left == ()
    with opened(target).read() as session:
        two = collections.by_name(session, "two")
        keys = set(session.scalars(select(Image.key).where(Image.collection_id == two.id)))
        assert {"a.jpg", "z_copy_of_a.jpg"}.isdisjoint(keys)
        certificate = erase.certificates(session, 1)[0]
        assert (certificate.kind, certificate.counts) == ("import", {"photos": 2, "faces": 2, "inherited": 0})
        assert certificate.completed_at is not None
        assert session.scalar(select(func.count()).where(Suppression.collection_id == two.id)) == 4  # 1 + 1 + 2 objects
        stored = [entry.key for page in open_store(target.crops_uri).list(f"{two.id}/") for entry in page]
        assert len([key for key in stored if key.endswith(".jpg")]) == 2
    assert len(of_pair(target, "two")) == 1
    assert not list((target.home_folder / "thumbnails").rglob("*.jpg"))  # it showed a.jpg


@pytest.mark.slow
def test_a_photograph_that_was_erased_here_before_it_was_read_does_not_come_in(
    file: Path, source: Settings, target: Settings
) -> None:
    with opened(source).read() as there, opened(target).write() as here:
        mine = collections.add(here, "mine", "/photos", [], [], [])
        image = there.scalars(select(Image).where(Image.key == "a.jpg")).one()
        seen = {"key": image.key, "etag": image.etag, "size": image.size, "modified_at": image.modified_at}
        here.add(Image(collection_id=mine.id, status="pending", **seen))
        photo = there.get_one(Content, image.content_id).sha256
    erased(target, erase.plan_image, "a.jpg", "mine")
    taken = taken_in(target, file)
    assert (taken.held_photos, taken.held_faces, taken.left) == (2, 1, ())  # with the copy of it
    assert objects(target).keys() == {key for key in objects(source) if photo not in key}
    assert not list((target.home_folder / "thumbnails").rglob("*.jpg"))
    assert count(target, Face) == 14 + taken.faces == 14 + 3


@pytest.mark.slow
def test_what_was_erased_there_stays_away_here(processed: Settings, empty: Settings, tmp_path: Path) -> None:
    home = shutil.copytree(processed.home_folder, tmp_path / "there" / "home")
    there = processed.model_copy(update={"home": home})
    gone = of_pair(there, "archive")[0]
    erased(there, erase.plan_faces, [gone])
    erased(there, erase.plan_image, "b.jpg", "archive")
    path = tmp_path / "archive.visage"
    archive(opened(there), there, "archive", path, "tests")
    taken_in(empty, path)
    with opened(empty).write() as session:
        session.execute(update(Image).values(recipe="old"))
        session.execute(update(Content).values(recipe="old"))
    with night(empty, "archive") as state:
        steps.discover_images(state)
        steps.process_images(state)
    assert state.tally.images == 6
    assert state.discovery.ignored >= 1  # b.jpg
    assert len(of_pair(empty, "archive")) == 1


def test_an_erasure_takes_the_archive_with_it(source: Settings, processed: Settings, tmp_path: Path) -> None:
    home = shutil.copytree(processed.home_folder, tmp_path / "there" / "home")
    there = processed.model_copy(update={"home": home})
    path = tmp_path / "archive.visage"
    archive(opened(there), there, "archive", path, "tests")
    assert path.exists()
    with opened(there).read() as session:
        assert str(path) in erase.plan_image(session, "b.jpg", "archive").exhibits
    erased(there, erase.plan_image, "b.jpg", "archive")
    assert not path.exists()


# --- Encryption


@pytest.mark.slow
def test_encrypted_vectors_leave_only_with_the_key_and_are_sealed_where_they_arrive(
    file: Path, empty: Settings, source: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_in(empty, file)
    monkeypatch.setenv(encryption.VARIABLE, encryption.new_key())
    embeddings.switch(empty, "tests", on=True)
    made = archive(opened(empty), empty, "archive", tmp_path / "with.visage", "tests")
    assert made.decrypted
    taken_in(empty, made.path, "again")
    with Catalog(empty.catalog_url, unlock=False).read() as session:
        stored = session.scalars(select(type_coerce(Embedding.vector, LargeBinary))).all()
        assert all(len(vector) % 4 for vector in stored)
    with opened(empty).read() as session:
        vectors = [v.tobytes() for v in session.scalars(select(Embedding.vector).order_by(Embedding.face_id))]
    assert vectors[:4] == vectors[4:]
    monkeypatch.delenv(encryption.VARIABLE)
    with pytest.raises(EmbeddingsLocked, match="are encrypted: set VISAGE_EMBEDDING_KEY"):
        archive(opened(empty), empty, "archive", tmp_path / "without.visage", "tests")
    with pytest.raises(EmbeddingsLocked, match="are encrypted: set VISAGE_EMBEDDING_KEY"):
        taken_in(empty, file, "third")
    assert not list(tmp_path.glob("*without*"))
    assert count(empty, Collection) == 2


# --- Bad input


def changed(path: Path, out: Path, change: Callable[[str, bytes], bytes | None], honest: bool = True) -> Path:
    """Write an archive anew with some parts changed, and digests that fit, as somebody would who means harm."""
    parts: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            new = change(member.name, data.read())
            if new is not None:
                parts[member.name] = new
    if honest and MANIFEST in parts:
        told = json.loads(parts[MANIFEST])
        for name in told["tables"]:
            told["tables"][name]["sha256"] = sha256(parts[f"tables/{name}.parquet"]).hexdigest()
        parts[MANIFEST] = json.dumps(told).encode()
    with tarfile.open(out, "w") as tar:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out


def with_rows(table: str, change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    """Change every row of one table."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    def apply(name: str, data: bytes) -> bytes:
        if name != f"tables/{table}.parquet":
            return data
        found = pq.read_table(io.BytesIO(data))
        rows = found.to_pylist()
        for row in rows:
            change(row)
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, found.schema), out)
        return out.getvalue()

    return apply


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def newer(name: str, data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "schema": "9999_from_tomorrow"}).encode() if name == MANIFEST else data


def newest(name: str, data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "format_version": 99}).encode() if name == MANIFEST else data


BAD: dict[str, tuple[Callable[[str, bytes], bytes | None], bool, str]] = {
    "a table was changed": (
        lambda n, d: flipped(d) if "face.parquet" in n else d,
        False,
        r"face\.parquet does not fit",
    ),
    "a crop was changed": (lambda n, d: flipped(d) if n.endswith(".jpg") else d, True, r"objects/.* does not fit"),
    "a crop is missing": (lambda n, d: None if n.endswith(".png") else d, True, "objects are there"),
    "no manifest": (lambda n, d: None if n == MANIFEST else d, False, "ends without its manifest"),
    "a later schema": (newer, True, "made by a later Visage .*Update Visage here"),
    "a later format": (newest, True, "made by a later Visage .*Update Visage here"),
    "a strange manifest": (lambda n, d: b"[]" if n == MANIFEST else d, False, "manifest cannot be read"),
    "a path for a photograph": (
        with_rows("objects", lambda row: row.update(photo="../" * 20 + "etc")),
        True,
        "is no object that Visage has written",
    ),
    "a path for a crop": (
        with_rows("objects", lambda row: row.update(name="../../../x.jpg")),
        True,
        "is no object that Visage has written",
    ),
    "a path for a digest": (with_rows("content", lambda row: row.update(sha256="../../x")), True, "SHA-256 is none"),
    "a face of no photograph": (
        with_rows("face", lambda row: row.update(content_id=4711)),
        True,
        "refers to content 4711, which is not there",
    ),
    "a vector of another length": (
        with_rows("embedding", lambda row: row.update(vector=[1.0, 1.0])),
        True,
        "a vector of 2 numbers is none of its model version",
    ),
    "a vector that is none": (
        with_rows("embedding", lambda row: row.update(vector=[float("nan")] * 128)),
        True,
        "NaN or infinity",
    ),
    "a status that is none": (with_rows("image", lambda row: row.update(status="odd")), True, "do not fit together"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_and_leaves_nothing(name: str, file: Path, empty: Settings, tmp_path: Path) -> None:
    change, honest, message = BAD[name]
    bad = changed(file, tmp_path / "bad.visage", change, honest)
    with pytest.raises(InvalidArchive, match=message) as refused:
        taken_in(empty, bad)
    assert str(bad) in str(refused.value)
    assert count(empty, Collection) == 0
    assert objects(empty) == {}
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("bad.visage", "empty")] == []


def test_a_file_that_was_cut_short_or_is_something_else_is_refused(file: Path, empty: Settings, tmp_path: Path) -> None:
    cut, other, none = tmp_path / "cut", tmp_path / "other", tmp_path / "none"
    data = file.read_bytes()
    other.write_bytes(b"\xff\xd8\xff a photograph")
    none.write_bytes(b"")
    for size in (len(data) // 3, len(data) // 2 // 512 * 512, len(data) - 20_000):
        cut.write_bytes(data[:size])
        with pytest.raises(InvalidArchive, match=r"Copy|archive"):
            taken_in(empty, cut)
    for path in (other, none):
        with pytest.raises(InvalidArchive, match=r"no archive of 'visage archive'|ends without its manifest"):
            taken_in(empty, path)
    assert count(empty, Collection) == 0


def test_a_link_in_the_file_is_refused(empty: Settings, tmp_path: Path) -> None:
    path = tmp_path / "link"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("objects/" + "0" * 64)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(InvalidArchive, match="is no plain file"):
        taken_in(empty, path)


def test_vectors_of_another_model_under_a_known_name_are_refused(file: Path, empty: Settings) -> None:
    with opened(empty).write() as session:
        session.add(
            ModelVersion(
                name="dlib-resnet", version=1, role="embed", contract="another", contract_content={}, weights_sha256="0",
                dimension=128, licence="CC0",
            )
        )  # fmt: skip
    with pytest.raises(
        VersionConflict, match=r"dlib-resnet@1 .*here that name is contract another.* cannot be compared"
    ):
        taken_in(empty, file)
    assert count(empty, Collection) == 0


def test_nothing_is_written_over_and_no_half_archive_is_left(
    source: Settings, processed: Settings, tmp_path: Path
) -> None:
    home = shutil.copytree(processed.home_folder, tmp_path / "home")
    settings = processed.model_copy(update={"home": home})
    catalog = opened(settings)
    mine = tmp_path / "mine"
    mine.write_text("precious")
    with pytest.raises(CannotArchive, match="is there already; name a new file"):
        archive(catalog, settings, "archive", mine, "tests")
    with pytest.raises(CannotArchive, match="is no folder"):
        archive(catalog, settings, "archive", tmp_path / "no" / "where", "tests")
    with catalog.read() as session:
        crop = session.scalars(select(Face.crop_key)).first()
    assert crop is not None
    open_store(settings.crops_uri).delete(crop)
    with pytest.raises(CannotArchive, match="this crop is missing"):
        archive(catalog, settings, "archive", tmp_path / "out", "tests")
    with catalog.write() as session:
        open_run(session, collections.by_name(session, "archive").id, "r")
    with pytest.raises(CannotArchive, match="is at work on 'archive'; wait for it"):
        archive(catalog, settings, "archive", tmp_path / "out", "tests")
    assert mine.read_text() == "precious"
    with catalog.read() as session:
        noted = session.scalars(select(Exhibit.place).where(Exhibit.place.startswith(str(tmp_path)))).all()
    assert noted == []  # what comes to lie there is not ours
    assert {path.name for path in tmp_path.iterdir()} == {"home", "mine"}


def test_commands_say_what_they_did(
    source: Settings, empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(settings: Settings) -> None:
        for name in ("home", "weights", "tracking_uri", "database_url"):
            monkeypatch.setenv(f"VISAGE_{name.upper()}", str(getattr(settings, name)))

    at(source)
    path = tmp_path / "archive.visage"
    ended = visage("archive", "archive", path)
    assert ended.code == 0
    assert "7 photos, 4 faces" in ended.out
    at(empty)
    ended = visage("import", path, "--as", "mine", "--json")
    assert (ended.code, ended.json["collection"], ended.json["faces"]) == (0, "mine", 4)
    ended = visage("import", path, "--as", "mine")
    assert ended.code == 1
    assert "choose another name with --as" in ended.err


# --- What nobody should forget


def test_every_table_travels_or_is_known_to_stay() -> None:
    assert {carried.name for carried in CARRIED} | STAYS == set(Base.metadata.tables)
    assert not {carried.name for carried in CARRIED} & STAYS


@pytest.mark.parametrize("carried", CARRIED, ids=lambda carried: carried.name)
def test_every_reference_is_renumbered(carried: Any) -> None:
    references = {c.name for c in carried.table.columns if c.foreign_keys or c.name.endswith("_id")}
    assert references - carried.alone - {"process_id"} == set(carried.refers)
