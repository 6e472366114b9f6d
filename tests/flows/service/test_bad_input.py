"""What nobody should send, and some will: each is answered with a problem that says what to do, and nothing is stored."""

import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from http.client import HTTPConnection
from itertools import cycle
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from sqlalchemy import func, inspect, select, text

from flows.service.limits import Rate, Rates
from flows.service.state import PROBES
from infra.catalog.database import Catalog
from infra.catalog.service import tokens
from infra.catalog.service.tokens import Role
from infra.settings import Settings
from tests.hostile import hostile_files
from tests.portraits import jpeg, landscape, mirrored
from tests.serving import serving

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)
UPLOADS = ("/search", "/erasures/plan/photo")
HUGE = 200 * 2**20


def bomb() -> bytes:
    """A small file that claims to be a huge picture."""
    return next(content for name, content, _ in hostile_files() if "bomb" in name)


def blank(width: int, height: int) -> bytes:
    """A picture of one colour as PNG: a few kilobytes, however large."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def secrets(own: Settings) -> dict[str, str]:
    with Catalog(own.catalog_url).write() as session:
        made = {role.label: tokens.create(session, role.label, role, timedelta(days=1)) for role in Role}
        made["expired"] = tokens.create(session, "expired", Role.ADMIN, timedelta(seconds=-1))
    return made


@pytest.fixture(scope="module")
def api(own: Settings, secrets: dict[str, str]) -> Iterator[httpx.Client]:
    """Whoever may do everything; the models are loaded, and the token's use is noted."""
    signed = {"Authorization": f"Bearer {secrets['admin']}"}
    with (
        serving(own, rates=GENEROUS) as url,
        httpx.Client(base_url=f"{url}/api/v1", headers=signed, timeout=60) as client,
    ):
        assert client.post("/search", files={"photo": ("a.jpg", jpeg(mirrored()))}).status_code == 200
        yield client


def stored(settings: Settings) -> dict[str, object]:
    """Everything that is kept: the files' names, and how many rows each table has."""
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        tables = inspect(catalog.engine).get_table_names()
        rows = {table: session.scalar(select(func.count()).select_from(text(table))) for table in tables}
    catalog.close()
    files = {str(path) for path in settings.home_folder.rglob("*") if not path.name.startswith("catalog.db")}
    return {**rows, "files": files}


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and kind of an answer, which must be a whole problem document with words for a person."""
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= told.keys()
    assert told["status"] == answer.status_code
    assert len(told["detail"].split()) >= 4
    return answer.status_code, told["type"].removeprefix("urn:visage:problem:")


@pytest.mark.parametrize("address", UPLOADS)
def test_a_file_that_is_no_photograph_of_a_face_is_named(api: httpx.Client, own: Settings, address: str) -> None:
    before = stored(own)
    cases = {
        b"": (422, "unreadable-photo", "send another"),
        b"%PDF-1.7 not an image": (422, "unreadable-photo", "cannot be read"),
        jpeg(mirrored())[:3000]: (422, "unreadable-photo", "cannot be read"),
        bomb(): (422, "unreadable-photo", "cannot be read"),
        jpeg(landscape()): (422, "nothing-to-search", "try one where the face is larger"),
    }
    for photo, (status, kind, said) in cases.items():
        answer = api.post(address, files={"photo": ("a.jpg", photo)})
        assert problem(answer) == (status, kind)
        assert said in answer.json()["detail"]
    assert problem(api.post(address, files={"other": ("a.jpg", b"x")})) == (422, "no-photo")
    assert problem(api.post(address, json={})) == (415, "media-type")
    assert stored(own) == before


@pytest.mark.parametrize("address", UPLOADS)
def test_a_few_kilobytes_that_hold_more_megapixels_than_an_upload_may_are_refused(
    api: httpx.Client, own: Settings, address: str
) -> None:
    photo = blank(10_000, 8_000)
    assert len(photo) < 50_000
    assert own.max_megapixels > 80  # a night would take it
    answer = api.post(address, files={"photo": ("a.png", photo)})
    assert problem(answer) == (422, "unreadable-photo")
    assert "10,000 x 8,000 pixels are more than the 64 million allowed" in answer.json()["detail"]
    assert "a smaller copy" in answer.json()["detail"]


def test_few_photographs_wait_to_be_searched_with_and_who_comes_late_is_told_when_to_come_again(
    api: httpx.Client,
) -> None:
    photos = [blank(8_000, 7_900)] + [jpeg(landscape())] * 2 * PROBES  # the first takes a second
    with ThreadPoolExecutor(len(photos)) as pool:
        sent = [
            pool.submit(api.post, address, files={"photo": ("a", photo)})
            for photo, address in zip(photos, cycle(UPLOADS), strict=False)
        ]
        answers = [answer.result() for answer in sent]
    told = [problem(answer) for answer in answers]
    assert set(told) == {(422, "nothing-to-search"), (503, "busy")}
    assert told.count((422, "nothing-to-search")) >= PROBES
    late = answers[told.index((503, "busy"))]
    assert int(late.headers["retry-after"]) > 0
    assert api.post("/search", files={"photo": ("a.jpg", jpeg(mirrored()))}).status_code == 200


@pytest.mark.parametrize("address", UPLOADS[:1])
def test_200_megabytes_are_refused_whether_they_were_announced_or_not(
    api: httpx.Client, own: Settings, address: str
) -> None:
    before = stored(own)

    def unannounced() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        yield from (bytes(2**20) for _ in range(HUGE // 2**20))

    form = {"Content-Type": "multipart/form-data; boundary=x"}
    place = urlsplit(str(api.base_url))
    with closing(HTTPConnection(place.hostname or "", place.port)) as line:
        signed = {"Host": "localhost", "Authorization": api.headers["Authorization"]}
        line.request("POST", f"/api/v1{address}", headers={**form, **signed, "Content-Length": str(HUGE)})
        told = line.getresponse()  # without a byte of the body
        announced = httpx.Response(told.status, headers=told.headers.items(), content=told.read())
    assert problem(announced) == (413, "too-large")
    assert "VISAGE_UPLOAD_BYTES" in announced.json()["detail"]
    assert problem(api.post(address, content=unannounced(), headers=form)) == (413, "too-large")
    assert stored(own) == before


@pytest.mark.parametrize("address", UPLOADS)
def test_half_an_upload_leaves_nothing_whether_it_ends_early_or_the_line_breaks(
    api: httpx.Client, own: Settings, address: str
) -> None:
    before = stored(own)
    whole = httpx.Request("POST", "http://x/", files={"photo": ("a.jpg", jpeg(mirrored()))})
    body, kind = whole.read(), whole.headers["content-type"]
    ended = api.post(address, content=body[: len(body) // 2], headers={"Content-Type": kind})
    assert problem(ended) == (400, "cut-off")
    assert "Send it again" in ended.json()["detail"]
    place = urlsplit(str(api.base_url))
    head = (
        f"POST /api/v1{address} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {api.headers['Authorization']}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((place.hostname or "", place.port or 0)) as line:
        line.sendall(head.encode() + body[: len(body) // 2])
    assert api.get("/me").status_code == 200
    assert stored(own) == before


def test_whoever_may_not_is_told_why_and_what_to_do(api: httpx.Client, own: Settings, secrets: dict[str, str]) -> None:
    before = stored(own)
    photo = {"photo": ("a.jpg", jpeg(mirrored()))}
    new = {"name": "theirs", "uri": str(own.home_folder.parent)}
    tried = {
        "wrong": ("visage_guess", "not-signed-in", "unknown"),
        "expired": (secrets["expired"], "not-signed-in", "expired"),
        "wrong role": (secrets["curate"], "role", "needs the role admin"),
    }
    for token, kind, said in tried.values():
        signed = {"Authorization": f"Bearer {token}"}
        for answer in (
            api.post("/collections", json=new, headers=signed),
            api.post("/erasures/plan/photo", files=photo, headers=signed),
        ):
            assert problem(answer)[1] == kind
            assert said in answer.json()["detail"]
    nobody = httpx.post(f"{api.base_url}collections", json=new)
    assert problem(nobody) == (401, "not-signed-in")
    assert "visage tokens create" in nobody.json()["detail"]
    assert stored(own) == before


def test_a_replayed_key_stores_nothing_twice_and_nothing_else(api: httpx.Client, own: Settings) -> None:
    def add(name: str) -> httpx.Response:
        return api.post(
            "/collections", json={"name": name, "uri": str(own.home_folder.parent)}, headers={"Idempotency-Key": "key"}
        )

    first = add("once")
    after = stored(own)
    again = add("once")
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (201, first.json(), "true")
    other = add("twice")
    assert problem(other) == (422, "idempotency-key")
    assert "use a new one" in other.json()["detail"]
    assert stored(own) == after
