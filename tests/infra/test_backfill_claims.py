"""Processes share a backfill: what one has in hand no other does, and what the dead leave is taken over."""

import os
from datetime import timedelta

import pytest
from sqlalchemy import update

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Content, now
from infra.catalog.tables.upgrades import BackfillClaim, Upgrade
from infra.catalog.versioning.backfill_claims import LEASE, claim, count_workers, release, this_process
from tests.made_up import VERSIONS, Crowd

ELSEWHERE = "another machine:1:1.0"


@pytest.fixture
def upgrade(catalog: Catalog) -> int:
    """Return an upgrade that is under way in a catalog of four photos."""
    crowd = Crowd(catalog)
    for person in range(4):
        crowd.photo(person)
    former, target = (crowd.versions[version] for version in VERSIONS)
    row = Upgrade(
        former_id=former, target_id=target, asked="", status="backfilling", verdict="better", reason="", forced=False,
        source="crops",
    )  # fmt: skip
    with catalog.write() as session:
        session.add(row)
        session.flush()
        return row.id


def test_what_one_process_has_in_hand_no_other_gets_until_it_is_released(catalog: Catalog, upgrade: int) -> None:
    mine, photos = this_process(), [3, 1, 2]
    with catalog.write() as session:
        assert claim(session, upgrade, ELSEWHERE, [1]) == [1]
        assert claim(session, upgrade, mine, photos) == [3, 2]  # in the order that was asked for
        assert claim(session, upgrade, ELSEWHERE, photos) == [1]
        assert count_workers(session, upgrade) == 2
        release(session, upgrade, mine)
        assert claim(session, upgrade, ELSEWHERE, photos) == photos
        assert claim(session, upgrade, mine, photos) == []


def test_what_the_dead_had_in_hand_is_taken_over(catalog: Catalog, upgrade: int) -> None:
    mine = this_process()
    machine, _, started = mine.rsplit(":", 2)
    killed, reused = f"{machine}:999999999:1.0", f"{machine}:{os.getpid()}:{float(started) - 100}"
    with catalog.write() as session:
        for worker, photo in ((killed, 1), (reused, 2), (ELSEWHERE, 3)):
            assert claim(session, upgrade, worker, [photo]) == [photo]
        assert claim(session, upgrade, mine, [1, 2, 3, 4]) == [1, 2, 4]
        session.execute(update(BackfillClaim).values(claimed_at=now() - LEASE - timedelta(minutes=1)))
        assert claim(session, upgrade, mine, [3]) == [3]


def test_a_photo_that_is_gone_is_claimed_by_nobody(catalog: Catalog, upgrade: int) -> None:
    with catalog.write() as session:
        session.delete(session.get_one(Content, 2))
        session.flush()
        assert claim(session, upgrade, ELSEWHERE, [1, 2]) == [1]
