"""The audit log: one chain, whoever writes, and nothing in it changes unnoticed."""

import hashlib
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from infra.catalog.custody import audit
from infra.catalog.custody.audit import LogBroken
from infra.catalog.database import Catalog


def write(catalog: Catalog, *actions: str) -> list[str]:
    with catalog.write() as session:
        return [audit.append(session, "ada", action, {"face": n, "ü": [1.5, None]}) for n, action in enumerate(actions)]


def holds(catalog: Catalog, head: str | None = None) -> audit.Verified:
    with catalog.read() as session:
        return audit.verify(session, head)


def tamper(catalog: Catalog, statement: str) -> None:
    """Do what only somebody with the database's own rights can: change rows past the triggers."""
    with catalog.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE audit_entry DISABLE TRIGGER audit_entry_append_only"))
        else:
            for name in ("audit_entry_no_update", "audit_entry_no_delete"):
                connection.execute(text(f"DROP TRIGGER {name}"))
        connection.execute(text(statement))


def test_an_untouched_log_holds_and_names_its_head(catalog: Catalog) -> None:
    assert holds(catalog) == audit.Verified(0, audit.GENESIS)
    first, second = write(catalog, "search.photo", "decide.name")
    assert holds(catalog) == audit.Verified(2, second)
    assert holds(catalog, head=first).entries == 2
    with catalog.read() as session:
        assert [entry.action for entry in audit.entries(session, 10, "decide")] == ["decide.name"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE audit_entry SET who = 'bob' WHERE id = 2", "at entry 2"),
        ("UPDATE audit_entry SET subject = '{}' WHERE id = 1", "at entry 1"),
        ("DELETE FROM audit_entry WHERE id = 2", "before entry 3"),
    ],
)
def test_a_changed_or_removed_entry_is_found(catalog: Catalog, change: str, message: str) -> None:
    write(catalog, "a", "b", "c")
    tamper(catalog, change)
    with pytest.raises(LogBroken, match=message):
        holds(catalog)


def test_a_cut_off_end_is_found_by_a_digest_kept_elsewhere(catalog: Catalog) -> None:
    *_, head = write(catalog, "a", "b", "c")
    tamper(catalog, "DELETE FROM audit_entry WHERE id = 3")
    assert holds(catalog).entries == 2
    with pytest.raises(LogBroken, match="its end was cut off"):
        holds(catalog, head)


@pytest.mark.parametrize("change", ["UPDATE audit_entry SET who = 'bob'", "DELETE FROM audit_entry"])
def test_the_database_refuses_to_change_entries(catalog: Catalog, change: str) -> None:
    write(catalog, "a")
    with pytest.raises(DatabaseError, match="append-only"), catalog.write() as session:
        session.execute(text(change))
    assert holds(catalog).entries == 1


def test_concurrent_writers_keep_one_chain(catalog: Catalog) -> None:
    def work() -> None:
        mine = Catalog(catalog.url)
        for _ in range(10):
            write(mine, "a", "b")
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holds(catalog).entries == 80


def test_an_entry_of_a_transaction_that_fails_is_not_written(catalog: Catalog) -> None:
    def fail() -> None:
        with catalog.write() as session:
            audit.append(session, "ada", "a", {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert holds(catalog).entries == 0


def test_a_search_is_noted_by_ids_and_a_hash_that_only_this_catalog_can_make(catalog: Catalog) -> None:
    photo = b"\xff\xd8 a photograph"
    with catalog.write() as session:
        audit.searched(session, "ada", "catalog", [3, 1, 3], [photo], limit=10)
        audit.searched(session, "ada", "catalog", [], face=7)
        audit.searched(session, "bob", "service", [], [photo])
        again, face, first = audit.entries(session, 10, "search")
    assert (first.action, first.subject["found"], first.subject["limit"]) == ("search.catalog", [1, 3], 10)
    assert again.subject["photos"] == first.subject["photos"] != [hashlib.sha256(photo).hexdigest()]
    assert face.subject == {"face": 7, "photos": [], "found": []}
