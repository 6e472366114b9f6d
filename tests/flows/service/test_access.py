"""Who may come in, and what they may do: every refusal says why, and nothing leaks to other sites."""

import socket
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from flows.service.access import COOKIE
from flows.service.app import create_app
from flows.service.client import Client, ServiceProblem
from flows.service.limits import Limiter, Rate, Rates
from flows.service.orders import CollectionIn
from flows.service.problems import Problem
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.service import tokens
from infra.catalog.service.tokens import Role
from infra.catalog.tables.schema import RunStatus, now
from infra.catalog.tables.service import AccessToken
from infra.catalog.work.runs import close_run, open_run
from infra.settings import PREFIX, Settings
from tests.command import visage
from tests.serving import serving


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose catalog is empty but for three tokens."""
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def secrets(empty: Settings) -> dict[str, str]:
    """A token for each role, and one of each kind that does not count."""
    with Catalog(empty.catalog_url).write() as session:
        made = {role.label: tokens.create(session, role.label, role, timedelta(days=1)) for role in Role}
        made["expired"] = tokens.create(session, "expired", Role.ADMIN, timedelta(seconds=-1))
        made["revoked"] = tokens.create(session, "revoked", Role.ADMIN, None)
        session.flush()
        tokens.revoke(session, "revoked")
    return made


@pytest.fixture(scope="module")
def address(empty: Settings, secrets: dict[str, str]) -> Iterator[str]:
    generous = Rate(100_000, 100_000)
    with serving(empty, rates=Rates(requests=generous, refusals=generous)) as url:
        yield url


def refusal(url: str, token: str | None) -> ServiceProblem:
    with Client(url, token) as client, pytest.raises(ServiceProblem) as caught:
        client.collections()
    return caught.value


def test_a_token_is_kept_as_a_digest_only(empty: Settings, secrets: dict[str, str]) -> None:
    database = Path(empty.catalog_url.removeprefix("sqlite:///"))
    stored = b"".join(path.read_bytes() for path in database.parent.glob("catalog.db*"))
    assert tokens.digest(secrets["admin"]).encode() in stored
    assert secrets["admin"].removeprefix(tokens.PREFIX).encode() not in stored


def test_every_refused_token_says_why(address: str, secrets: dict[str, str]) -> None:
    told = {kind: refusal(address, secrets[kind]) for kind in ("expired", "revoked")}
    told |= {"none": refusal(address, None), "wrong": refusal(address, "visage_wrong")}
    assert {problem.status for problem in told.values()} == {401}
    assert "expired" in told["expired"].detail
    assert "revoked" in told["revoked"].detail
    assert "visage tokens create" in told["none"].detail
    assert "unknown" in told["wrong"].detail


def test_each_role_may_do_what_its_name_says(address: str, secrets: dict[str, str], tmp_path: Path) -> None:
    def adding(role: str) -> None:
        with Client(address, secrets[role]) as client:
            client.add_collection(CollectionIn(name=f"by {role}", uri=str(tmp_path)))

    for role in ("read", "curate"):
        with Client(address, secrets[role]) as client:
            assert client.me().role == role
        with pytest.raises(ServiceProblem, match="needs the role admin") as caught:
            adding(role)
        assert caught.value.status == 403
    adding("admin")
    with Client(address, secrets["read"]) as client:
        assert "by admin" in {collection.name for collection in client.collections()}


def test_a_collection_may_be_called_anything_that_people_write(
    address: str, secrets: dict[str, str], tmp_path: Path
) -> None:
    signed = {"Authorization": f"Bearer {secrets['admin']}"}
    with httpx.Client(base_url=address, headers=signed) as client:
        answer = client.post("/api/v1/collections", json={"name": "Архив 1923, №7?", "uri": str(tmp_path)})
        assert answer.status_code == 201
        assert client.get(answer.headers["location"]).json() == answer.json()


def test_nobody_comes_in_once_a_token_was_made_even_if_it_is_revoked(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with serving(settings) as url:
        with Client(url) as client:
            assert client.me().role == "admin"
        with Catalog(settings.catalog_url).write() as session:
            tokens.create(session, "only", Role.READ, None)
            session.flush()
            tokens.revoke(session, "only")
        assert refusal(url, None).status == 401


def test_whoever_loses_their_token_sees_nothing_more_of_what_they_watch(empty: Settings, address: str) -> None:
    catalog = Catalog(empty.catalog_url)
    with catalog.write() as session:
        run = open_run(session, collections.add(session, "watched", "/nowhere", [], [], []).id, "recipe").id
        leaver = tokens.create(session, "leaver", Role.READ, None)
    with Client(address, leaver) as client:
        watching = client.watch_run(run)
        assert next(watching).status == "running"
        with catalog.write() as session:
            tokens.revoke(session, "leaver")
            close_run(session, run, RunStatus.DONE, {})
        with pytest.raises(ServiceProblem, match="was revoked") as caught:
            next(watching)
    assert (caught.value.status, caught.value.kind) == (401, "not-signed-in")
    catalog.close()


def test_an_exposed_service_lets_nobody_in_without_a_token(tmp_path: Path) -> None:
    with serving(Settings(home=tmp_path), exposed=True) as url:
        assert refusal(url, None).status == 401


def test_serving_others_is_refused_while_nobody_has_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path))
    for arguments in (["--host", "0.0.0.0"], ["--public-name", "photos.example.org"]):
        ended = visage("serve", *arguments)
        assert ended.code == 2
        assert "visage tokens create" in ended.err.replace("\n", " ")


def test_a_taken_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = visage("serve", "--port", port)
    assert ended.code == 1
    assert f"port {port}" in ended.err
    assert "--port" in ended.err


def test_tokens_are_made_listed_and_revoked_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path))
    made = visage("tokens", "create", "reading room", "--role", "read", "--days", 30).out
    token = made.splitlines()[0]
    assert token.startswith(tokens.PREFIX)
    (row,) = visage("tokens", "list", "--json").json
    assert (row["name"], row["role"], row["state"]) == ("reading room", "read", "active")
    assert token not in visage("tokens", "list", "--json").out
    assert "exists already" in visage("tokens", "create", "reading room", "--role", "admin").err
    assert visage("tokens", "revoke", "reading room").code == 0
    assert visage("tokens", "list", "--json").json[0]["state"] == "revoked"
    assert "reading room" in visage("tokens", "revoke", "nobody").err


def test_a_page_elsewhere_cannot_write_nor_borrow_the_name_of_this_machine(
    address: str, secrets: dict[str, str]
) -> None:
    signed = {"Authorization": f"Bearer {secrets['admin']}"}
    body = {"name": "x", "uri": "/tmp"}
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = httpx.post(f"{address}/api/v1/collections", json=body, headers={**signed, **headers})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:visage:problem:cross-site")
    rebound = httpx.get(f"{address}/api/v1/collections", headers={**signed, "Host": "evil.example"})
    assert rebound.status_code == 421


@pytest.mark.parametrize("path", ["/api/v1/collections", "/photographs"])
def test_a_host_or_origin_that_is_no_name_is_refused(address: str, path: str) -> None:
    assert httpx.get(address + path, headers={"Host": "[::1"}).status_code == 421
    assert httpx.post(address + path, headers={"Origin": "http://["}).status_code == 403


def test_every_answer_carries_the_headers_that_keep_a_browser_strict(address: str) -> None:
    for path in ("/api/v1/health", "/api/v1/me", "/api/v1/nothing"):
        headers = httpx.get(address + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "private, no-cache"
        assert "server" not in headers


def test_head_tells_what_get_would_without_its_content(empty: Settings, address: str, secrets: dict[str, str]) -> None:
    with Catalog(empty.catalog_url).write() as session:
        endless = open_run(session, collections.add(session, "endless", "/nowhere", [], [], []).id, "recipe").id
    signed = {"Authorization": f"Bearer {secrets['read']}"}
    with httpx.Client(base_url=address, headers=signed, timeout=20) as client:
        for path in ("/api/v1/health", "/api/v1/me", "/sign-in", "/api/v1/runs/0"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b"")
            assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
        watched = client.head(f"/api/v1/runs/{endless}/progress/events")
        assert watched.headers["content-type"].startswith("text/event-stream")
        assert client.head("/api/v1/me", headers={"Authorization": "Bearer guess"}).status_code == 401


def test_guessing_tokens_is_slowed_down(tmp_path: Path) -> None:
    with serving(Settings(home=tmp_path), exposed=True, rates=Rates(refusals=Rate(3, 0.01))) as url:
        answers = [httpx.get(f"{url}/api/v1/me", headers={"Authorization": "Bearer guess"}) for _ in range(5)]
    assert [a.status_code for a in answers] == [401, 401, 401, 429, 429]
    assert int(answers[-1].headers["retry-after"]) > 50


def test_wrong_tokens_do_not_lock_out_who_holds_a_valid_one_behind_the_same_address(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with Catalog(settings.catalog_url).write() as session:
        valid = tokens.create(session, "valid", Role.READ, None)
    with serving(settings, exposed=True, rates=Rates(refusals=Rate(3, 0.01))) as url:

        def ask(token: str) -> int:
            return httpx.get(f"{url}/api/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code

        def sign_in(token: str) -> int:
            return httpx.post(f"{url}/sign-in", data={"token": token, "next": "/"}).status_code

        assert [ask("guess") for _ in range(5)] == [401, 401, 401, 429, 429]
        assert ask(valid) == 200
        assert sign_in("guess") == 401
        assert sign_in(valid) == 303
        assert ask("guess") == 429


def test_a_bucket_fills_again_with_time() -> None:
    time = [0.0]
    limiter = Limiter(Rate(2, 0.5), "tests", lambda: time[0])
    limiter.take("a")
    limiter.take("a")
    with pytest.raises(Problem, match="Wait 2 s"):
        limiter.take("a")
    limiter.take("b")
    time[0] = 2.0
    limiter.take("a")


def test_the_use_of_a_token_is_noted(empty: Settings, address: str, secrets: dict[str, str]) -> None:
    catalog = Catalog(empty.catalog_url)
    with catalog.write() as session:
        session.execute(update(AccessToken).values(last_used_at=None))
    with serving(empty) as url, Client(url, secrets["curate"]) as client:
        client.me()
    with catalog.read() as session:
        used = session.scalar(select(AccessToken.last_used_at).where(AccessToken.name == "curate"))
    assert used is not None
    assert now() - used < timedelta(minutes=1)


def test_the_use_of_a_token_on_the_page_is_noted(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        token = tokens.create(session, "ada", Role.READ, None)
    with TestClient(create_app(settings), base_url="http://localhost") as browser:
        page = browser.post("/sign-in", data={"token": token, "next": "/people"})
        assert (page.status_code, page.url.path) == (200, "/people")
    with catalog.read() as session:
        assert session.scalar(select(AccessToken.last_used_at)) is not None
    catalog.close()


def test_a_locked_catalog_keeps_nobody_with_a_token_from_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.service.state.PATIENCE_SECONDS", 0.1)
    settings = Settings(home=tmp_path)
    with Catalog(settings.catalog_url).write() as session:
        token = tokens.create(session, "ada", Role.READ, None)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        other.close()


def test_signing_out_takes_the_cookie_of_this_service_and_none_of_its_neighbours(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with Catalog(settings.catalog_url).write() as session:
        token = tokens.create(session, "ada", Role.READ, None)
    with TestClient(create_app(settings), base_url="http://localhost") as browser:
        page = browser.post("/sign-in", data={"token": token, "next": "/people"})
        csrf = page.text.partition('name="csrf" value="')[2].partition('"')[0]
        out = browser.post("/sign-out", data={"csrf": csrf}, follow_redirects=False)
        assert out.headers["clear-site-data"] == '"cache", "storage"'
        assert COOKIE not in browser.cookies
