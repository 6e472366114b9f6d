"""Embeddings encrypted at rest: nothing readable without the key, and nothing lost with it."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from infra.catalog import encryption
from infra.catalog.checking import check
from infra.catalog.database import Catalog
from infra.catalog.encryption import EmbeddingsLocked
from infra.catalog.exchange.copying import copy_catalog
from infra.catalog.search import sealed
from infra.catalog.search.projection import Projection, build
from infra.catalog.search.vectors import put_embeddings
from infra.catalog.tables.schema import Embedding, Face, ModelVersion
from infra.catalog.tables.upgrades import Upgrade
from infra.catalog.versioning.backfill_claims import claim, release, this_process
from infra.settings import Settings
from tasks.custody.encryption import switch
from tasks.search import Query, search_faces
from tests.catalogs import FreshUrl
from tests.command import visage
from tests.made_up import Crowd


def vectors(catalog: Catalog) -> dict[tuple[int, int], bytes]:
    with catalog.read() as session:
        return {
            (e.face_id, e.model_version_id): np.asarray(e.vector).tobytes() for e in session.scalars(select(Embedding))
        }


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    key = encryption.new_key()
    monkeypatch.setenv("VISAGE_EMBEDDING_KEY", key)
    return key


@pytest.fixture
def crowd(catalog: Catalog) -> Crowd:
    crowd = Crowd(catalog, spread=0.4)
    for person in (1, 1, 2):
        crowd.photo(person)
    return crowd


def home(tmp_path: Path, crowd: Crowd) -> Settings:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "1.faiss").write_bytes(b"an index")
    return Settings(home=tmp_path, database_url=crowd.catalog.url)


def test_with_the_key_everything_works_as_before(crowd: Crowd, tmp_path: Path, key: str) -> None:
    before = vectors(crowd.catalog)
    settings = home(tmp_path, crowd)
    count, finished = switch(settings, "officer", True)
    assert (count, finished.left) == (6, ())
    assert not (tmp_path / "index").exists()
    crowd.catalog = Catalog(crowd.catalog.url)
    assert vectors(crowd.catalog) == before
    (new,) = crowd.photo(1)
    crowd.night()
    places = crowd.places()
    assert places[new] == places[1] == places[2] != places[3]
    with crowd.catalog.read() as session:
        assert not [problem for problem in check(crowd.catalog).problems if "unit length" in problem]
        raw = session.execute(text("SELECT vector FROM embedding")).scalars().all()
    assert {len(value) % 4 for value in raw} == {1}
    assert len({bytes(value) for value in raw}) == 8
    crowd.catalog.close()
    assert switch(settings, "officer", False)[0] == 8


@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_postgresql_builds_the_index_of_encrypted_vectors_when_rows_change_and_only_then(
    crowd: Crowd, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, database_url=crowd.catalog.url)
    switch(settings, "officer", True)
    crowd.catalog = Catalog(crowd.catalog.url)
    built: list[int] = []

    def counting(session: Session, version: ModelVersion) -> Projection:
        built.append(version.id)
        return build(session, version)

    monkeypatch.setattr(sealed, "build", counting)
    first = next(iter(crowd.shows))

    def found() -> list[int]:
        answer = search_faces(crowd.catalog, settings, Query(faces=(first,)))
        assert answer.method == "exact"
        return sorted(match.face.face_id for match in answer.matches)

    before = found()
    assert (found(), len(built)) == (before, 1)
    (new,) = crowd.photo(1)
    assert (found(), found(), len(built)) == ([*before, new], [*before, new], 2)
    with (
        crowd.catalog.write() as session
    ):  # as many as before, and the other way round: the vector of a face that is there
        row = session.scalars(select(Embedding).where(Embedding.face_id == new)).first()
        assert row is not None
        row.vector = -np.asarray(row.vector)
    answer = search_faces(crowd.catalog, settings, Query(faces=(first,)))
    assert (answer.matches[-1].face.face_id, len(built)) == (new, 3)
    with crowd.catalog.write() as session:
        session.execute(delete(Face).where(Face.id == new))
    assert (found(), len(built)) == (before, 4)


def test_no_vector_is_left_readable_in_the_files(fresh_catalog_url: FreshUrl, tmp_path: Path, key: str) -> None:
    plain = Path(fresh_catalog_url("sqlite").removeprefix("sqlite:///"))
    (tmp_path / "catalog.db").write_bytes(plain.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VISAGE_EMBEDDING_KEY")
        crowd = Crowd(Catalog(f"sqlite:///{tmp_path / 'catalog.db'}"))
        crowd.photo(1, 2)
    stored = vectors(crowd.catalog)
    crowd.catalog.close()
    switch(Settings(home=tmp_path), "officer", True)
    contents = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert stored
    assert not any(vector in contents for vector in stored.values())


def test_without_the_key_no_embedding_is_read_or_written_and_all_else_is(
    crowd: Crowd, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch(home(tmp_path, crowd), "officer", True)
    monkeypatch.delenv("VISAGE_EMBEDDING_KEY")
    locked = Catalog(crowd.catalog.url)
    with pytest.raises(EmbeddingsLocked, match="set VISAGE_EMBEDDING_KEY"):
        vectors(locked)
    crowd.catalog = locked
    with pytest.raises(Exception, match="set VISAGE_EMBEDDING_KEY"):
        crowd.photo(1)
    assert crowd.places() == {}
    locked.close()


def lengths(catalog: Catalog) -> set[int]:
    """How many bytes vectors are stored as: 128 in the open, 157 sealed."""
    with catalog.read() as session:
        return set(session.scalars(text("SELECT length(vector) FROM embedding")))


def test_a_process_that_opened_the_catalog_before_a_switch_writes_no_vector_as_it_was_then(
    crowd: Crowd, tmp_path: Path, key: str
) -> None:
    settings, before = home(tmp_path, crowd), crowd.catalog
    switch(settings, "officer", True)
    encrypted = Catalog(before.url)
    with pytest.raises(EmbeddingsLocked, match="start it again"):
        look_anew(crowd, before)
    look_anew(crowd, encrypted)
    assert lengths(encrypted) == {157}
    assert switch(settings, "officer", False)[0] == 6
    with pytest.raises(EmbeddingsLocked, match="start it again"):
        look_anew(crowd, encrypted)
    look_anew(crowd, before)
    assert lengths(before) == {128}
    encrypted.close()


def look_anew(crowd: Crowd, catalog: Catalog) -> None:
    """Write another vector of a face that has one."""
    with catalog.write() as session:
        put_embeddings(session, crowd.versions["first"], {1: crowd.look("first", 1)})


@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_a_switch_waits_for_whoever_is_writing_embeddings(crowd: Crowd, tmp_path: Path, key: str) -> None:
    settings, url = home(tmp_path, crowd), crowd.catalog.url
    switching = threading.Thread(target=switch, args=(settings, "officer", True))
    with crowd.catalog.write() as writing:
        row = writing.scalars(select(Embedding)).first()
        assert row is not None
        writing.execute(
            insert(Embedding).values(face_id=3, model_version_id=crowd.versions["detect"], vector=row.vector)
        )
        switching.start()
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'embedding'::regclass")
        assert any(time.sleep(0.01) or writing.scalar(waits) for _ in range(1000))
    switching.join()
    encrypted = Catalog(url)
    assert lengths(encrypted) == {157}
    assert len(vectors(encrypted)) == 7
    encrypted.close()


def test_vectors_that_an_earlier_version_left_in_the_open_are_found_and_a_switch_passes_over_them(
    crowd: Crowd, tmp_path: Path, key: str
) -> None:
    settings = home(tmp_path, crowd)
    with crowd.catalog.read() as session:
        former = session.scalar(text("SELECT vector FROM embedding WHERE face_id = 2"))
    switch(settings, "officer", True)
    encrypted = Catalog(crowd.catalog.url)
    with encrypted.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER embedding_alike_update"))
        else:
            connection.execute(text("DROP TRIGGER embedding_alike ON embedding"))
        connection.execute(text("UPDATE embedding SET vector = :open WHERE face_id = 2"), {"open": bytes(former)})
    [problem] = [found for found in check(encrypted).problems if "index" not in found]
    assert problem.startswith("2 embeddings are readable although the catalog is encrypted: faces 2, 2;")
    encrypted.close()
    assert [switch(settings, "officer", on)[0] for on in (False, True)] == [4, 6]
    assert lengths(crowd.catalog) == {157}


def test_nothing_is_switched_while_a_backfill_is_at_work(crowd: Crowd, tmp_path: Path, key: str) -> None:
    former, target = crowd.versions["first"], crowd.versions["second"]
    upgrade = Upgrade(
        former_id=former, target_id=target, asked="", status="backfilling", verdict="", reason="", source="crops"
    )
    with crowd.catalog.write() as session:
        session.add(upgrade)
        session.flush()
        claim(session, upgrade.id, this_process(), [1])
    settings = home(tmp_path, crowd)
    with pytest.raises(EmbeddingsLocked, match="a backfill is at work"):
        switch(settings, "officer", True)
    with crowd.catalog.write() as session:
        release(session, upgrade.id, this_process())
        machine, process, started = this_process().rsplit(":", 2)
        claim(session, upgrade.id, f"{machine}:{process}:{float(started) - 100}", [1])  # one that died
    assert switch(settings, "officer", True)[0] == 6


def test_another_key_is_refused_at_once(
    crowd: Crowd, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch(home(tmp_path, crowd), "officer", True)
    monkeypatch.setenv("VISAGE_EMBEDDING_KEY", encryption.new_key())
    with pytest.raises(EmbeddingsLocked, match="not the catalog's"):
        Catalog(crowd.catalog.url)
    (tmp_path / "key").write_text(key + "\n")
    monkeypatch.delenv("VISAGE_EMBEDDING_KEY")
    monkeypatch.setenv("VISAGE_EMBEDDING_KEY_FILE", str(tmp_path / "key"))
    assert len(vectors(Catalog(crowd.catalog.url))) == 6


@pytest.mark.parametrize(("given", "message"), [("not base64!", "not base64"), ("c2hvcnQ=", "5 bytes, not 32")])
def test_what_is_no_key_is_refused(given: str, message: str) -> None:
    with pytest.raises(EmbeddingsLocked, match=message):
        encryption.read_key({"VISAGE_EMBEDDING_KEY": given})
    with pytest.raises(EmbeddingsLocked, match="both"):
        encryption.read_key({"VISAGE_EMBEDDING_KEY": given, "VISAGE_EMBEDDING_KEY_FILE": "f"})
    with pytest.raises(EmbeddingsLocked, match="cannot be read"):
        encryption.read_key({"VISAGE_EMBEDDING_KEY_FILE": "/nowhere/key"})
    assert encryption.read_key({}) is None


def test_a_copy_of_an_encrypted_catalog_is_encrypted_with_the_same_key(
    fresh_catalog_url: FreshUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(Catalog(fresh_catalog_url("sqlite")))
    crowd.photo(1, 2)
    stored = vectors(crowd.catalog)
    monkeypatch.setenv("VISAGE_EMBEDDING_KEY", encryption.new_key())
    switch(home(tmp_path, crowd), "officer", True)
    copy_catalog(crowd.catalog.url, f"sqlite:///{tmp_path / 'copy.db'}")
    assert vectors(Catalog(f"sqlite:///{tmp_path / 'copy.db'}")) == stored
    raw = (tmp_path / "copy.db").read_bytes()
    assert not any(vector in raw for vector in stored.values())


def test_encryption_is_switched_from_the_command_line(
    fresh_catalog_url: FreshUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": str(tmp_path), "DATABASE_URL": fresh_catalog_url("sqlite")}.items():
        monkeypatch.setenv(f"VISAGE_{name}", value)
    assert "VISAGE_EMBEDDING_KEY" in visage("encryption", "on").err
    monkeypatch.setenv("VISAGE_EMBEDDING_KEY", visage("encryption", "new-key").out.strip())
    assert "'visage encryption on'" in visage("identities").err  # a key for a catalog that is not encrypted
    assert visage("encryption", "on", "--json").json == {"embeddings": 0, "left": []}
    assert visage("encryption", "status", "--json").json == {"encrypted": True}
    assert visage("identities").code == 0
    assert "encrypted already" in visage("encryption", "on").err
    assert visage("encryption", "off").code == 0
