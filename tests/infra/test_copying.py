"""A catalog moves to another database: every row of it, once, even when the move is killed."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select, text, update

from infra.catalog import collections
from infra.catalog.checking import check
from infra.catalog.database import Catalog, CatalogUnfinished
from infra.catalog.exchange import copying
from infra.catalog.exchange.copying import CopyDiffers, CopyRefused, copy_catalog
from infra.catalog.images import put_pending
from infra.catalog.queries.photographs import PhotoFilter, photographs
from infra.catalog.search import vectors
from infra.catalog.search.vectors import put_embeddings
from infra.catalog.tables.schema import Collection, Content, Embedding, Face, Image, Run
from infra.catalog.tables.service import IdempotencyKey
from tests.catalogs import PostgreSQL
from tests.command import visage
from tests.infra.test_catalog import a_collection, a_run, listed, model_versions, process_all

pytestmark = pytest.mark.slow

KEYS = [f"{i:03}.jpg" for i in range(60)]


@pytest.fixture
def source(fresh_catalog_url: Callable[[str], str]) -> Iterator[Catalog]:
    """A SQLite catalog of 60 photos with 120 faces, unlike each other, and some pending images."""
    catalog = Catalog(fresh_catalog_url("sqlite"))
    collection_id, contract = a_collection(catalog, *KEYS), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract)
    rng = np.random.default_rng(1)
    with catalog.write() as session:
        put_pending(session, collection_id, listed("é waiting.jpg", "𝒳.jpg"))
        faces = list(session.scalars(select(Face.id)))
        unit = rng.normal(size=(len(faces), 4)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        put_embeddings(session, contract.embedder_id, dict(zip(faces, unit, strict=True)))
        session.execute(update(Run).values(counts={"größe": 0.1, "none": None, "list": [1, "a"]}))
    yield catalog
    catalog.close()


@pytest.fixture
def target(postgresql: PostgreSQL) -> Iterator[str]:
    url = postgresql.create()
    yield url
    postgresql.drop(url)


def test_every_row_arrives_and_the_copy_works_on_by_itself(source: Catalog, target: str) -> None:
    copied = {table.table: table.rows for table in copy_catalog(source.url, target)}
    assert (copied["image"], copied["face"], copied["embedding"], copied["attribute"]) == (62, 120, 120, 120)
    catalog = Catalog(target)
    assert check(catalog).problems == ()
    assert {name: rows for name, rows in check(catalog).rows.items() if rows} == {
        name: rows for name, rows in check(source).rows.items() if rows
    }
    with catalog.read() as session, source.read() as original:
        vector = select(Embedding.vector).order_by(Embedding.face_id)
        assert [v.tobytes() for v in session.scalars(vector)] == [v.tobytes() for v in original.scalars(vector)]
        assert session.scalar(select(Run.counts)) == {"größe": 0.1, "none": None, "list": [1, "a"]}
        assert vectors.has_index(session.connection(), 2)
    with catalog.write() as session:  # ids go on where they were
        assert collections.add(session, "another", "/photos", [], [], []).id == 2
    catalog.close()


def test_a_copy_that_is_killed_goes_on_where_it_stopped(source: Catalog, target: str) -> None:
    script = (
        "import os, signal; from infra.catalog.exchange import copying; copying.PAGE = 25; seen = []\n"
        "def progress(table, rows):\n"
        "    seen.append(table)\n"
        "    if seen.count('face') == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"copying.copy_catalog({source.url!r}, {target!r}, progress)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    with pytest.raises(CatalogUnfinished, match="'visage db copy' again"):
        Catalog(target)
    pages: list[tuple[str, int]] = []
    copied = copy_catalog(source.url, target, lambda table, rows: pages.append((table, rows)))
    assert [rows for table, rows in pages if table == "face"] == [120]
    assert not [table for table, _ in pages if table in ("collection", "content")]  # they were there already
    assert {t.table: t.rows for t in copied}["face"] == 120
    Catalog(target).close()


def test_a_source_that_changes_meanwhile_is_noticed_and_the_target_stays_closed(
    source: Catalog, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copy_catalog(source.url, target)
    monkeypatch.undo()
    with source.write() as session:
        session.execute(update(Image).where(Image.key == KEYS[0]).values(etag="changed"))
    with pytest.raises(CopyDiffers, match="table image: 62 rows"):
        copy_catalog(source.url, target)
    with pytest.raises(CatalogUnfinished):
        Catalog(target)


def test_a_database_that_sorts_as_a_language_does_takes_the_copy_and_answers_the_same(
    source: Catalog, postgresql: PostgreSQL
) -> None:
    english = postgresql.create_in_english()
    if english is None:
        pytest.skip("the locale en_US.utf8 cannot be made on this machine")
    with source.write() as session:
        for who in ("alice", "Bob"):  # by their bytes, Bob is the first
            session.add(IdempotencyKey(who=who, key="1", request_digest="x", status=200, body="", location=None))
        session.execute(update(Content).values(taken_at="1920-06-30T12:00:00"))
    copied = {table.table: table.rows for table in copy_catalog(source.url, english)}
    assert copied["idempotency_key"] == 2
    catalog, until = Catalog(english), ("1920-06-29", "1920-06-30", "1920-06", "1920")
    with catalog.read() as session:
        assert [len(photographs(session, PhotoFilter(taken_to=day), None, 1)) for day in until] == [0, 1, 1, 1]
    catalog.close()
    postgresql.drop(english)


def test_nothing_is_copied_over_something(source: Catalog, target: str, postgresql: PostgreSQL) -> None:
    with pytest.raises(CopyRefused, match="the same database"):
        copy_catalog(source.url, source.url)
    used = Catalog(target)
    a_collection(used)
    with pytest.raises(CopyRefused, match=r"something in it already \(collection\)"):
        copy_catalog(source.url, target)
    with used.read() as session:
        assert session.scalar(select(func.count()).select_from(Collection)) == 1
    used.close()
    foreign = postgresql.create()
    postgresql.execute(foreign, "CREATE TABLE payroll (id int)")
    with pytest.raises(CopyRefused, match="payroll"):
        copy_catalog(source.url, foreign)


def test_a_misspelt_source_is_refused_and_not_made(target: str, tmp_path: Path, postgresql: PostgreSQL) -> None:
    missing = tmp_path / "catalgo.db"
    with pytest.raises(CopyRefused, match=r"there is no file .*catalgo\.db to copy from"):
        copy_catalog(f"sqlite:///{missing}", target)
    assert not missing.exists()
    with pytest.raises(CopyRefused, match="holds no catalog to copy"):
        copy_catalog(postgresql.create(), target)


def test_the_way_back_from_a_server_to_a_file(source: Catalog, target: str, tmp_path: Path) -> None:
    copy_catalog(source.url, target)
    back = copy_catalog(target, f"sqlite:///{tmp_path / 'back.db'}")
    assert back == copy_catalog(source.url, f"sqlite:///{tmp_path / 'again.db'}")


def test_the_commands_say_what_they_did(source: Catalog, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = visage("db", "copy", source.url, target, "--json")
    assert ended.code == 0, ended.err
    assert {k: v for k, v in ended.json[4].items() if k != "digest"} == {"table": "image", "rows": 62} or ended.json
    monkeypatch.setenv("VISAGE_DATABASE_URL", target)
    assert visage("db", "upgrade", "--json").json["indexed"] == []
    ended = visage("db", "check")
    assert (ended.code, "nothing is wrong" in ended.out) == (0, True), ended.err
    again = visage("db", "copy", source.url, target)
    assert (again.code, "Traceback" in again.err) == (1, False)
    assert "something in it already" in again.err


def test_check_finds_what_is_broken(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract, faces=4)
    with catalog.engine.begin() as connection:
        vectors.create_index(connection, 2, 4)
    assert check(catalog).problems == ()
    sqlite = catalog.engine.dialect.name == "sqlite"
    broken = {1: np.zeros(4, "<f4"), 2: np.full(4, np.nan, "<f4"), 3: np.ones(1, "<f4")}
    if not sqlite:  # PostgreSQL itself refuses the others
        broken = {1: broken[1]}
    with catalog.engine.begin() as connection:
        update_bytes = text("UPDATE embedding SET vector = :v WHERE face_id = :f")
        connection.execute(update_bytes, [{"v": data.tobytes(), "f": face} for face, data in broken.items()])
        if not sqlite:
            connection.execute(text(f"DROP INDEX {vectors.index_name(2)}"))
    monkeypatch.setenv("VISAGE_DATABASE_URL", catalog.url)
    ended = visage("db", "check", "--json")
    assert ended.code == 1
    faces = "3 embeddings by embed@1 are no vectors of unit length: faces 1, 2, 3" if sqlite else "faces 1"
    assert ended.json["problems"][0].endswith(faces)
    assert (["has no index" in problem for problem in ended.json["problems"]] == [False, True]) is not sqlite
    if not sqlite:
        assert visage("db", "upgrade", "--json").json["indexed"] == [vectors.index_name(2)]
