"""The service over a catalog of made-up people, asked without a socket: what needs no photograph and no model to be seen."""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from flows.service import searching
from flows.service.access import Principal
from flows.service.app import create_app
from flows.service.gate import SMALL_BODY
from flows.service.paging import cursor
from flows.service.problems import problem_of
from flows.service.state import Service
from infra.catalog import collections, encryption
from infra.catalog.database import Catalog, CatalogUnfinished
from infra.catalog.identities import decisions as stored
from infra.catalog.service import jobs
from infra.catalog.service.tokens import Role
from infra.catalog.tables.people import DecisionKind
from infra.catalog.tables.schema import Embedding, MergeProposal, ModelVersion, Run, RunStatus
from infra.catalog.tables.service import Job, JobStatus
from infra.catalog.tables.upgrades import Upgrade
from infra.catalog.work.runs import close_run, open_run
from infra.settings import Settings
from infra.weights import WeightsError
from models.spec import CheckpointMismatch
from tasks.probe import Probed
from tests.made_up import VERSIONS, Crowd

Opened = Callable[[], TestClient]


@pytest.fixture
def crowd(fresh_catalog_url: Callable[[str], str]) -> Iterator[Crowd]:
    """Six people of two photographs each, as a night has grouped them."""
    catalog = Catalog(fresh_catalog_url("sqlite"))
    crowd = Crowd(catalog, spread=0.2)
    for person in (1, 2, 3, 4, 5, 6) * 2:
        crowd.photo(person)
    crowd.night()
    yield crowd
    catalog.close()


@pytest.fixture
def settings(crowd: Crowd, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=crowd.catalog.url)


@contextmanager
def opened(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with opened(settings) as client:
        yield client


def propose(crowd: Crowd, *pairs: tuple[int, int, float]) -> None:
    """Propose merges of people by their numbers, each with the first face of both."""
    places = crowd.places()
    first = {person: face for face, person in reversed(crowd.shows.items())}
    with crowd.catalog.write() as session:
        session.add_all(
            MergeProposal(
                identity_a_id=places[first[a]], identity_b_id=places[first[b]],
                face_a_id=first[a], face_b_id=first[b], similarity=similarity, run_id=1,
            )
            for a, b, similarity in pairs
        )  # fmt: skip


def test_without_the_key_of_encrypted_embeddings_everything_else_works_and_what_needs_it_says_so(
    crowd: Crowd, settings: Settings
) -> None:
    propose(crowd, (1, 2, 0.5))
    face = next(iter(crowd.shows))
    with opened(settings) as before:
        assert "1 proposed merge" in before.get("/people").text
        with crowd.catalog.write() as session:
            encryption.encrypt(session, secrets.token_bytes(encryption.KEY_BYTES))
        with opened(settings) as locked:
            for client, what_to_do in ((before, "start it again"), (locked, "set VISAGE_EMBEDDING_KEY")):
                assert "1 proposed merge" in client.get("/people").text
                for address in ("/api/v1/proposals", f"/api/v1/faces/{face}/neighbours"):
                    answer = client.get(address)
                    assert (answer.status_code, answer.json()["type"]) == (503, "urn:visage:problem:embeddings-locked")
                    assert what_to_do in answer.json()["detail"]
                assert what_to_do in client.get("/people/proposals").text


def test_a_photograph_is_compared_with_faces_of_the_version_that_embedded_it_though_queries_switch_meanwhile(
    crowd: Crowd, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(settings)
    face = next(iter(crowd.shows))

    def probe(_: bytes, version: ModelVersion) -> Probed:
        with crowd.catalog.write() as session:
            vector = np.asarray(session.get_one(Embedding, (face, version.id)).vector)
            for name in VERSIONS:
                session.get_one(ModelVersion, crowd.versions[name]).serving = name == VERSIONS[1]
        one = np.ones(1, np.float32)
        return Probed(9, 9, np.zeros((1, 4), np.float32), one, vector[None], np.zeros((9, 9, 3), np.uint8))

    monkeypatch.setattr(service, "probe", probe)
    [answer] = searching.by_photo(service, Principal("ada", Role.READ), b"a photograph", 1).answers
    assert answer.model == "first@1"
    assert (answer.matches[0].face.id, round(answer.matches[0].similarity, 3)) == (face, 1)
    service.close()


@pytest.mark.parametrize("field", ["taken_from", "taken_to"])
def test_a_day_that_cannot_be_read_is_said_to_be_none_under_its_field(client: TestClient, field: str) -> None:
    for words in ("1927-6", "06/1927", "June 1927", "1927-02-30"):
        answer = client.get("/api/v1/images", params={field: words})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:visage:problem:question")
        assert f"{words!r} is no date; write 1920" in answer.json()["detail"]
        page = client.get("/photographs", params={field: words})
        assert page.status_code == 422
        assert re.search(rf'name="{field}"[^>]*aria-invalid="true" aria-describedby="misread-{field}"', page.text)
        assert re.search(rf'id="misread-{field}" role="alert">[^<]*is no date', page.text)
        assert page.text.count("aria-invalid") == 1
    for words in ("1927", "1927-06", "1927-06-30"):
        assert client.get("/photographs", params={field: words}).status_code == 200


def failed_job(crowd: Crowd, kind: str, subject: str) -> int:
    """Enter a job that failed just now."""
    with crowd.catalog.write() as session:
        job = jobs.open_job(session, kind, subject, "ada")
        jobs.close_job(session, job.id, JobStatus.FAILED, None, "the disk was full")
    return job.id


def ran(crowd: Crowd, collection: str, end: RunStatus | None = RunStatus.DONE) -> int:
    """Enter a run, which is at work still where no end is given."""
    with crowd.catalog.write() as session:
        run = open_run(session, collections.by_name(session, collection).id, "recipe")
        if end is not None:
            close_run(session, run.id, end, {})
    return run.id


def test_a_run_at_work_is_told_however_many_others_came_after_it(crowd: Crowd, client: TestClient) -> None:
    with crowd.catalog.write() as session:
        collections.add(session, "small", "/small", [], [], [])
    ran(crowd, "crowd", end=None)
    for _ in range(31):
        ran(crowd, "small")
    assert "crowd is at work" in client.get("/nights").text


def test_a_failed_job_follows_its_collection_and_goes_with_it(crowd: Crowd, client: TestClient) -> None:
    job = failed_job(crowd, "run", "crowd")
    with crowd.catalog.write() as session:
        collections.rename(session, collections.by_name(session, "crowd"), "new")
        collections.add(session, "crowd", "/other", [], [], [])
    page = client.get("/nights").text
    assert "The run of new failed" in page
    assert "The run of crowd failed" not in page
    run = ran(crowd, "new")
    assert "The run of new failed" not in client.get("/nights").text
    with crowd.catalog.write() as session:
        at = session.get_one(Run, run).started_at
        session.execute(update(Job).values(started_at=at, finished_at=at))
    assert client.get(f"/api/v1/jobs/{job}").json()["run_id"] == run
    failed_job(crowd, "run", "crowd")
    assert "The run of crowd failed" in client.get("/nights").text
    client.cookies.clear()  # by which a page's forms are known
    digest = client.get("/api/v1/collections/crowd/removal").json()["digest"]
    order = {"digest": digest, "word": "remove"}
    assert client.post("/api/v1/collections/crowd/removal", json=order).status_code == 201
    assert "failed.</b>" not in client.get("/nights").text


def test_a_backfill_that_failed_is_not_told_of_the_next_upgrade(crowd: Crowd, client: TestClient) -> None:
    def plan(status: str) -> Upgrade:
        first, second = (crowd.versions[name] for name in VERSIONS)
        return Upgrade(
            target_id=second, former_id=first, asked="", status=status, verdict="no worse", reason="r", source="crops",
            faces_per_second=1.0,
        )  # fmt: skip

    failed = "The backfill of the catalog failed"
    with crowd.catalog.write() as session:
        before = plan("backfilling")
        session.add(before)
    failed_job(crowd, "backfill", "the catalog")
    assert failed in client.get("/models").text
    with crowd.catalog.write() as session:
        session.get_one(Upgrade, before.id).status = "rolled back"
        session.flush()
        session.add(plan("backfilling"))
    page = client.get("/models").text
    assert failed not in page
    assert "Go on with the backfill" in page


def test_whoever_begins_in_the_middle_of_a_list_is_told_so_and_led_to_its_beginning(
    crowd: Crowd, client: TestClient
) -> None:
    run, person = ran(crowd, "crowd"), next(iter(crowd.places().values()))
    assert person is not None
    for address, place, start in (
        ("/nights", [run + 1], "/nights"),
        ("/people", [9, 1], "/people"),
        ("/people?text=a", [9, 1], "/people?text=a"),
        (f"/people/{person}", [1], f"/people/{person}"),
    ):
        note = f'<a href="{start}">Back to the beginning</a>'
        assert note not in client.get(address).text
        page = client.get(address, params={"after": cursor(place)} | ({"text": "a"} if "text" in address else {})).text
        assert note in page


@pytest.mark.parametrize(
    ("address", "fields"),
    [
        ("/erase/faces", {"face": "0"}),
        ("/erase", {"kind": "face", "subject": "0", "reason": "r", "digest": "a" * 64, "word": "erase"}),
        ("/erase", {"kind": "face", "subject": "1", "reason": "r", "digest": "z" * 64, "word": "erase"}),
        ("/nights/retry", {"collection": "x" * 101}),
    ],
)
def test_a_form_that_no_page_of_ours_sends_is_refused_with_what_does_not_fit(
    client: TestClient, address: str, fields: dict[str, str]
) -> None:
    csrf = re.findall('name="csrf" value="([0-9a-f]+)"', client.get("/erase").text + client.get("/nights").text)[0]
    answer = client.post(address, data={"csrf": csrf, **fields})
    assert answer.status_code == 422
    assert "The request does not fit" in answer.text


@pytest.mark.parametrize("referer", ["http://localhost", "http://[x/", "//", "x"])
def test_a_page_that_is_not_there_says_so_whatever_led_to_it(client: TestClient, referer: str) -> None:
    answer = client.get("/nowhere", headers={"Referer": referer})
    assert (answer.status_code, "There is no such page" in answer.text) == (404, True)


@pytest.mark.parametrize("address", ["/api/v1/images?text=%00", "/people?text=a%00b", "/api/v1/collections/a%00"])
def test_an_address_with_a_nul_is_refused(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert "NUL character" in answer.text


def test_a_place_with_a_nul_is_no_place_for_photographs(client: TestClient) -> None:
    for uri in ("/tmp/\0", "file:///tmp/%00"):
        answer = client.post("/api/v1/collections", json={"name": "new", "uri": uri})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:visage:problem:collection")
        assert "no folder has a NUL" in answer.json()["detail"]


def test_a_body_that_is_too_large_is_said_to_be_whether_it_was_announced_or_not(client: TestClient) -> None:
    large = b'{"name": "' + b"x" * 2 * SMALL_BODY + b'"}'
    for body in (large, iter([large[:SMALL_BODY], large[SMALL_BODY:]])):
        answer = client.post("/api/v1/collections", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:visage:problem:too-large")
        assert answer.json()["detail"].endswith("1 MiB that are taken here. Send less at once.")


def pages(client: TestClient, address: str, limit: int) -> list[dict[str, Any]]:
    """All items of a list, a page at a time."""
    items: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = client.get(address, params={"limit": limit, **after}).json()
        assert 1 <= len(page["items"]) <= limit
        items += page["items"]
        if page["next"] is None:
            return items
        after = {"after": page["next"]}


@pytest.mark.parametrize("limit", [1, 2])
def test_pages_of_proposals_and_decisions_join_without_gap_or_repetition(
    crowd: Crowd, client: TestClient, limit: int
) -> None:
    propose(crowd, (1, 2, 0.9), (1, 3, 1 / 3), (1, 4, 0.9), (2, 3, 1 / 3), (2, 4, 0.1), (4, 5, 0.4))
    whole = client.get("/api/v1/proposals").json()["items"]
    assert len(whole) == 6
    assert pages(client, "/api/v1/proposals", limit) == whole
    a, b = whole[1]["identity_a"], whole[1]["identity_b"]
    with crowd.catalog.write() as session:  # in force, but its proposal is still there
        persons = [stored.person_of(session, stored.identity(session, identity)) for identity in (a, b)]
        stored.enter(session, DecisionKind.DECLINE, "ada", *persons)
    assert pages(client, "/api/v1/proposals", limit) == [whole[0], *whole[2:]]
    for name in ("Ada", "Bea", "Cleo"):
        client.put(f"/api/v1/identities/{a}/name", json={"name": name})
    decided = [row["decision_id"] for row in pages(client, "/api/v1/decisions", limit)]
    assert len(decided) == 4
    assert decided == sorted(decided, reverse=True)


@pytest.mark.parametrize(
    "error", [WeightsError("/w has changed"), CheckpointMismatch("it has no key x"), CatalogUnfinished("copy it again")]
)
def test_what_a_person_must_mend_is_told_in_its_own_words(error: Exception) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.detail) == (503, str(error))
