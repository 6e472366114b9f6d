"""The API over a catalog that the real pipeline made: what goes in comes out, in pages, pictures and problems."""

import asyncio
import io
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from flows.service import pictures
from flows.service.app import create_app
from flows.service.client import Client, ServiceProblem
from flows.service.limits import Rate, Rates
from flows.service.orders import CollectionIn
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Attribute, Face, Identity, ModelVersion
from infra.settings import Settings
from tasks.identities import decisions
from tests.archive import BROKEN
from tests.hostile import hostile_files
from tests.portraits import jpeg, mirrored, pair
from tests.serving import serving

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)


def bomb() -> bytes:
    """A small file that claims to be a huge picture."""
    return next(content for name, content, _ in hostile_files() if "bomb" in name)


@pytest.fixture(scope="module")
def client(own: Settings) -> Iterator[Client]:
    with serving(own, rates=GENEROUS) as url, Client(url) as client:
        yield client


def test_photographs_come_with_their_faces_each_of_its_bytes_once(client: Client) -> None:
    found = {image.key: image for image in client.images()}
    assert set(found) == {"a.jpg", "b.jpg", "c/pair.jpg", "d.jpg"}
    assert [len(found[key].faces) for key in ("a.jpg", "b.jpg", "c/pair.jpg", "d.jpg")] == [1, 1, 2, 0]
    assert found["a.jpg"].others == 1
    assert (found["c/pair.jpg"].width, found["c/pair.jpg"].height) == (768, 384)
    left, right = found["c/pair.jpg"].faces
    assert left.box[2] < 384 < right.box[0]


def test_masks_and_points_are_given_beside_numbers(client: Client, own: Settings) -> None:
    face = next(client.faces())
    with Catalog(own.catalog_url).write() as session:
        points = np.arange(6, dtype=np.float32)
        model = session.scalars(select(ModelVersion.id).where(ModelVersion.role == "describe")).first()
        told = {"face_id": face.id, "model_version_id": model, "probabilities": None, "label": None, "value": None}
        told |= {"confidence": None}
        session.add_all([
            Attribute(name="landmarks_3", kind="points", unit="pixels", vector=points, mask_key=None, **told),
            Attribute(name="parsing", kind="mask", unit="class", vector=None, mask_key="parsing.png", **told),
        ])  # fmt: skip
    found = {a.name: a for a in client.face(face.id).attributes}
    assert (found["landmarks_3"].kind, found["landmarks_3"].value) == ("points", None)
    assert found["landmarks_3"].vector == (0, 1, 2, 3, 4, 5)
    assert (found["parsing"].kind, found["parsing"].vector) == ("mask", None)
    shown = httpx.get(str(client.http.base_url.join(f"/faces/{face.id}"))).raise_for_status().text
    assert "a picture of classes" in shown
    assert "6 numbers" in shown


def test_pages_join_without_gap_or_repetition_whatever_their_size(client: Client) -> None:
    whole = [image.id for image in client.images(limit=200)]
    assert whole == sorted(whole, reverse=True)
    assert [image.id for image in client.images(limit=1)] == whole
    assert [image.id for image in client.images(limit=3, order="oldest")] == whole[::-1]
    faces = [face.id for face in client.faces(limit=100)]
    assert [face.id for face in client.faces(limit=2)] == faces
    failures = [failure.id for failure in client.failures()]
    assert [failure.id for failure in client.failures(limit=1)] == failures


def test_filters_narrow_the_wall(client: Client) -> None:
    def keys(**wanted: object) -> set[str]:
        return {image.key for image in client.images(**wanted)}

    person = next(client.identities()).id
    assert keys(text="PAIR") == {"c/pair.jpg"}
    assert keys(text="%") == set()
    assert keys(faces="without") == {"d.jpg"}
    assert keys(faces="with", collection="archive") == {"a.jpg", "b.jpg", "c/pair.jpg"}
    assert keys(person=person) == {face.keys[0] for face in client.faces(identity=person)}
    assert keys(collection="nothing of the kind") == set()
    assert keys(status="failed") == set(BROKEN)
    shown = {a.label for face in client.faces() for a in face.attributes if a.name == "expression"}
    assert {key for label in shown for key in keys(label=f"expression:{label}")} == keys(faces="with")
    assert keys(taken_from="1900") == set()


class Sent(HTMLParser):
    """What a browser without scripts sends for the filters of a page when nothing is filled in but `changed`."""

    def __init__(self, page: str, changed: dict[str, str]) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.inside, self.select = False, ""
        self.feed(page)
        assert changed.keys() <= self.fields.keys()
        self.fields |= changed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.inside = given.get("method") == "get"
        elif self.inside and tag == "select":
            self.select = given["name"] or ""
        elif self.inside and tag == "input":
            self.fields[given["name"] or ""] = given.get("value") or ""
        elif self.inside and tag == "option" and (self.select not in self.fields or "selected" in given):
            self.fields[self.select] = given.get("value") or ""


@pytest.mark.parametrize(
    ("page", "changed"),
    [("/photographs", {}), ("/photographs", {"faces": "without"}), ("/people", {}), ("/people", {"min_faces": "1"})],
)
def test_filters_work_without_scripts_too(client: Client, page: str, changed: dict[str, str]) -> None:
    def shown(answer: httpx.Response) -> list[str]:
        assert answer.status_code == 200
        return re.findall(r'href="(/(?:photographs|people)/\d+)', answer.text)

    address = str(client.http.base_url.join(page))
    sent = Sent(httpx.get(address).text, changed).fields
    assert "" in sent.values()
    assert shown(httpx.get(address, params=sent)) == shown(httpx.get(address, params=changed))


def test_an_empty_field_is_one_that_was_left_out(client: Client) -> None:
    fields = ("collection", "person", "text", "faces", "min_quality", "label", "status", "order", "after", "limit")
    empty = client.http.get("/images", params=dict.fromkeys(fields, ""))
    assert (empty.status_code, empty.json()) == (200, client.http.get("/images").json())
    assert client.http.get("/images?min_quality=&limit=1&min_quality=2").status_code == 422


def test_a_question_narrows_the_wall_or_is_answered_with_what_is_wrong_with_it(client: Client) -> None:
    def keys(question: str, **wanted: object) -> set[str]:
        return {image.key for image in client.images(question=question, **wanted)}

    with_faces = {"a.jpg", "b.jpg", "c/pair.jpg"}
    assert keys("quality > 0 and collection = archive") == with_faces
    assert keys("photo ~ pair or photo ~ b.jpg") == {"c/pair.jpg", "b.jpg"}
    assert keys("photo ~ pair", faces="without") == set()
    assert keys("person is known") == with_faces
    assert keys("  ") == with_faces | {"d.jpg"}
    widths = {image.key: [face.box[2] - face.box[0] for face in image.faces] for image in client.images()}
    assert keys("width > 90") == {key for key, found in widths.items() if any(width > 90 for width in found)}
    for question, said in (("quality >", ">>>"), ("beauty > 3", "'beauty' is nothing that can be asked for")):
        with pytest.raises(ServiceProblem) as caught:
            keys(question)
        assert (caught.value.status, caught.value.kind) == (422, "question")
        assert said in caught.value.detail


def test_pictures_are_small_upright_and_known_again(client: Client) -> None:
    image = next(image for image in client.images() if image.key == "c/pair.jpg")
    with Image.open(io.BytesIO(client.picture(image.id, 320))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 160))
    address = f"/images/{image.id}/picture?size=320"
    first = client.http.get(address)
    again = client.http.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.http.get(address, headers={"If-None-Match": '"other"'}).status_code == 200
    other_size = client.http.get(
        f"/images/{image.id}/picture?size=640", headers={"If-None-Match": first.headers["etag"]}
    )
    assert other_size.status_code == 200


def test_whoever_asks_for_many_pictures_holds_up_nobody_else(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, thumbnail = threading.Event(), pictures.thumbnail

    def slowly(*arguments: Any) -> bytes:
        drawn.wait()  # as long as large pictures take
        return thumbnail(*arguments)

    monkeypatch.setattr(pictures, "thumbnail", slowly)

    async def ask() -> list[int]:
        app = create_app(own, rates=GENEROUS)
        service = app.state.service
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost/api/v1") as client:
            [image, *_] = (await client.get("/images")).json()["items"]
            many = [asyncio.create_task(client.get(f"/images/{image['id']}/picture?size=2048")) for _ in range(60)]
            await asyncio.sleep(0.5)
            try:
                others = [await asyncio.wait_for(client.get(path), 10) for path in ("/health", "/ready", "/images")]
                assert not any(picture.done() for picture in many)
            finally:
                drawn.set()
                answers = await asyncio.gather(*many)
        service.close()
        return [answer.status_code for answer in others + answers]

    assert set(asyncio.run(ask())) == {200}


def test_a_restored_face_is_marked_wherever_it_is_given_out(client: Client) -> None:
    face = next(face for face in client.faces() if face.restoration is not None)
    assert face.restoration is not None
    assert face.restoration.synthetic
    answer = client.http.get(f"/faces/{face.id}/restored")
    assert answer.headers["x-visage-synthetic"] == "true"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert "Synthetic detail" in picture.info["Description"]
    assert "x-visage-synthetic" not in client.http.get(f"/faces/{face.id}/crop").headers
    plain = next(face for face in client.faces() if face.restoration is None)
    with pytest.raises(ServiceProblem, match="restored crop"):
        client.restored(plain.id)


def test_neighbours_are_others_with_probabilities(client: Client) -> None:
    face = next(client.faces())
    answer = client.neighbours(face.id, 2)
    assert [match.face.id == face.id for match in answer.matches] == [False, False]
    assert answer.matches[0].similarity >= answer.matches[1].similarity
    assert all(m.probability is not None and 0 <= m.probability <= 1 for m in answer.matches)


def test_a_photograph_finds_each_of_its_faces_and_leaves_nothing_behind(client: Client, own: Settings) -> None:
    def everything() -> set[str]:
        return {str(path) for path in own.home_folder.rglob("*") if not path.name.startswith("catalog.db")}

    before = everything()
    answers = client.search(jpeg(pair(500)), 3)
    assert [len(answer.matches) for answer in answers] == [3, 3]
    assert all(answer.matches[0].similarity > 0.95 for answer in answers)
    assert everything() == before


def test_the_night_is_told_with_its_failures(client: Client) -> None:
    (run,) = client.runs(collection="archive")
    assert run.status in {"running", "done_with_failures"}
    assert {failure.key for failure in client.failures(run=run.id)} == set(BROKEN)
    progress = client.progress(run.id)
    assert (progress.done, progress.total) == (7, 7)


def test_models_tell_what_they_made(client: Client) -> None:
    by_name = {model.name: model for model in client.models()}
    (embedder,) = by_name["dlib-resnet"].versions
    assert embedder.serving
    assert embedder.calibrated
    assert embedder.faces == 4
    assert by_name["lightcnn-29v2"].versions == []
    with pytest.raises(ServiceProblem, match="no version"):
        client.promote("dlib-resnet", 99)


def test_an_erased_face_is_gone_from_every_answer(client: Client, own: Settings) -> None:
    """Ids that are in no row: nothing is guessed, and no path is made of them."""
    with Catalog(own.catalog_url).read() as session:
        largest = max(session.scalars(Face.__table__.select().with_only_columns(Face.id)))
    for path in ("", "/crop", "/restored", "/neighbours"):
        assert client.http.get(f"/faces/{largest + 1}{path}").status_code == 404
    for path in ("/faces/..%2f..%2fcatalog.db/crop", "/faces/-1", "/faces/9223372036854775808", "/images/x/picture"):
        assert client.http.get(path).status_code in {404, 422}


def test_the_address_of_somebody_merged_away_leads_to_whom_they_were_merged_into(client: Client, own: Settings) -> None:
    with Catalog(own.catalog_url).write() as session:
        kept, gone = session.scalars(select(Identity.id).order_by(Identity.id).limit(2))
        merged = decisions.merge(session, "tests", kept, gone)
    assert client.identity(gone) == client.identity(kept)
    assert client.name(gone, "Ada").identity_id == kept
    page = client.http.get(
        client.http.base_url.copy_with(path=f"/people/{gone}"), params={"decided": merged.decision_id}
    )
    assert (page.status_code, page.headers["location"]) == (303, f"/people/{kept}?decided={merged.decision_id}")
    with Catalog(own.catalog_url).write() as session:
        for decision in (merged.decision_id + 1, merged.decision_id):
            decisions.undo(session, "tests", decision)


def test_a_replayed_write_is_done_once_and_answered_alike(client: Client, own: Settings) -> None:
    new = CollectionIn(name="second", uri=str(own.home_folder.parent))
    first = client.add_collection(new, "key-1")
    assert client.add_collection(new, "key-1") == first
    replayed = client.http.post("/collections", json=new.model_dump(), headers={"Idempotency-Key": "key-1"})
    assert replayed.headers["idempotency-replayed"] == "true"
    assert replayed.headers["location"] == "/api/v1/collections/second"
    with pytest.raises(ServiceProblem, match="another request before"):
        client.add_collection(CollectionIn(name="third", uri=str(own.home_folder.parent)), "key-1")
    with pytest.raises(ServiceProblem, match="exists already") as caught:
        client.add_collection(new, "key-2")
    assert caught.value.status == 409
    with pytest.raises(ServiceProblem) as caught:
        client.add_collection(CollectionIn(name="fourth", uri="https://elsewhere/photos"), "key-2")
    assert caught.value.kind == "collection"  # a refused write leaves its key free


def test_unknown_fields_and_values_are_named(client: Client) -> None:
    answer = client.http.post("/collections", json={"name": "x", "uri": "/tmp", "colour": "red"})
    assert answer.status_code == 422
    assert "colour" in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert "size" in client.http.get("/images/1/picture?size=333").json()["detail"]


def test_crops_are_what_the_pipeline_cut(client: Client) -> None:
    face = next(client.faces(min_quality=0.1))
    with Image.open(io.BytesIO(client.crop(face.id))) as picture:
        assert picture.width == picture.height
        assert np.asarray(picture).std() > 20


def test_a_locked_catalog_is_read_on_and_said_to_be_locked(client: Client, own: Settings) -> None:
    new = CollectionIn(name="while locked", uri=str(own.home_folder.parent))
    with closing(sqlite3.connect(own.catalog_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert client.collections()
        answer = client.http.post("/collections", json=new.model_dump())
        other.execute("ROLLBACK")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:visage:problem:catalog-locked")
    assert answer.headers["retry-after"] == "5"
    assert client.add_collection(new).name == "while locked"


def test_missing_models_say_how_to_get_them(own: Settings, tmp_path: Path) -> None:
    with serving(own.model_copy(update={"weights": tmp_path})) as url, Client(url) as client:
        with pytest.raises(ServiceProblem, match="visage models install") as caught:
            client.search(jpeg(mirrored()))
        assert (caught.value.status, caught.value.kind) == (503, "model-missing")
        assert client.faces()  # all else goes on
