"""What people decide and erase through the service: by whom, once, to the end, and written down."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.service.client import Client, ServiceProblem
from flows.service.limits import Rate, Rates
from flows.service.orders import CollectionChange, CollectionIn, ErasureIn, ErasureOrder, RemovalOrder, ScheduleIn
from infra.catalog.database import Catalog
from infra.catalog.service import tokens
from infra.catalog.service.tokens import Role
from infra.settings import Settings
from tasks import thumbnails
from tasks.exchange.exports import Format, export
from tests.portraits import jpeg, landscape, pair, portrait
from tests.serving import serving

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)


@pytest.fixture(scope="module")
def clients(own: Settings) -> Iterator[dict[str, Client]]:
    """A client for each role, under a name of its own."""
    with Catalog(own.catalog_url).write() as session:
        made = {role: tokens.create(session, f"the {role.label}", role, timedelta(days=1)) for role in Role}
    with serving(own, rates=GENEROUS) as url:
        yield {role.label: Client(url, token) for role, token in made.items()}


def test_decisions_carry_the_name_of_whoever_made_them_and_can_be_taken_back(clients: dict[str, Client]) -> None:
    curator = clients["curate"]
    person = next(curator.identities())
    with pytest.raises(ServiceProblem, match="needs the role curate"):
        clients["read"].name(person.id, "Nobody")
    named = curator.name(person.id, "Eileen Collins")
    assert curator.identity(person.id).name == "Eileen Collins"
    assert [p.id for p in curator.identities(text="collins")] == [person.id]
    (entry, *_) = clients["admin"].audit("decide")
    assert (entry.who, entry.action) == ("the curate", "decide.name")
    assert "Collins" not in str(entry.subject)
    curator.undo(named.decision_id)
    assert curator.identity(person.id).name is None
    with pytest.raises(ServiceProblem, match="undone already") as caught:
        curator.undo(named.decision_id)
    assert (caught.value.status, caught.value.kind) == (409, "decision")


def test_faces_split_off_stay_apart_until_that_is_undone(clients: dict[str, Client]) -> None:
    curator = clients["curate"]
    person = next(curator.identities(min_faces=2))
    faces = [face.id for face in curator.faces(identity=person.id)]
    split = curator.split(faces[:1])
    assert split.identity_id not in (None, person.id)
    assert curator.face(faces[0]).identity_id == split.identity_id
    curator.undo(split.decision_id)
    assert [face.id for face in curator.faces(identity=person.id)] == faces


def test_a_person_left_out_is_in_no_list_until_that_is_undone(clients: dict[str, Client]) -> None:
    curator = clients["curate"]
    person = next(curator.identities()).id
    answer = curator.http.post(f"/identities/{person}/ignore").json()
    assert person not in [p.id for p in curator.identities()]
    curator.undo(answer["decision_id"])
    assert person in [p.id for p in curator.identities()]


def test_every_search_is_in_the_audit_log_without_the_photograph(clients: dict[str, Client]) -> None:
    photo = jpeg(portrait(300))
    clients["read"].search(photo)
    clients["read"].neighbours(next(clients["read"].faces()).id)
    with pytest.raises(ServiceProblem, match="needs the role admin"):
        list(clients["read"].audit())
    by_face, by_photo = list(clients["admin"].audit("search"))[:2]
    assert {by_face.who, by_photo.who} == {"the read"}
    assert by_face.subject["faces"]
    assert len(by_photo.subject["photos"]) == 1
    assert by_photo.subject["found"]


def test_an_erased_face_is_gone_from_every_answer_and_certified(
    clients: dict[str, Client], own: Settings, tmp_path: Path
) -> None:
    admin, table = clients["admin"], tmp_path / "table"
    export(Catalog(own.catalog_url), own, "", table, Format.JSON_LINES, "tests")
    image = next(image for image in admin.images(text="pair"))
    face, other = image.faces
    admin.picture(image.id, 640)
    admin.crop(face.face_id)
    asked = ErasureIn(faces=[face.face_id])
    plan = admin.plan_erasure(asked)
    assert plan.faces == [face.face_id]
    assert plan.keys == ["archive/c/pair.jpg"]
    assert str(table) in plan.exhibits

    def order(word: str = "erase", digest: str = plan.digest) -> ErasureOrder:
        return ErasureOrder(faces=[face.face_id], word=word, digest=digest, reason="asked for")

    with pytest.raises(ServiceProblem, match="needs the role admin"):
        clients["curate"].erase(order())
    with pytest.raises(ServiceProblem, match="Type the word"):
        admin.erase(order(word="yes"))
    with pytest.raises(ServiceProblem, match="something else would go"):
        admin.erase(order(digest="0" * 64))
    certificate = admin.erase(order(), "once")
    assert admin.erase(order(), "once") == certificate
    assert certificate.completed_at is not None
    assert (certificate.who, certificate.reason) == ("the admin", "asked for")
    for path in ("", "/crop", "/neighbours"):
        assert admin.http.get(f"/faces/{face.face_id}{path}").status_code == 404
    assert [f.face_id for f in admin.image(image.id).faces] == [other.face_id]
    assert not list((own.home_folder / "thumbnails").rglob("*.jpg"))
    assert not table.exists()
    assert next(admin.audit("erase")).who == "the admin"


def test_a_photograph_that_is_erased_while_its_thumbnail_is_made_leaves_none(
    clients: dict[str, Client], own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, decode = clients["admin"], thumbnails.decode
    image = next(image for image in admin.images() if image.key == "a.jpg")
    asked = ErasureIn(image=image.id)
    plan = admin.plan_erasure(asked)
    completed = []

    def decode_and_erase(*arguments: Any, **options: Any) -> Any:
        picture = decode(*arguments, **options)
        order = ErasureOrder(**asked.model_dump(), word="erase", digest=plan.digest, reason="asked for")
        completed.append(admin.erase(order).completed_at)
        return picture

    monkeypatch.setattr(thumbnails, "decode", decode_and_erase)
    assert admin.http.get(f"/images/{image.id}/picture?size=320").status_code == 404
    assert completed != [None]
    assert not list((own.home_folder / "thumbnails").rglob("*.jpg"))


def test_whoever_a_photograph_shows_is_erased_by_it_and_the_photograph_is_not_kept(
    clients: dict[str, Client], own: Settings
) -> None:
    def files() -> set[str]:
        return {str(path) for path in own.home_folder.rglob("*") if not path.name.startswith("catalog.db")}

    admin, photo, before = clients["admin"], jpeg(pair(420)), files()
    with pytest.raises(ServiceProblem, match="needs the role admin"):
        clients["curate"].plan_erasure_by_photo(photo)
    with pytest.raises(ServiceProblem, match="no face was found"):
        admin.plan_erasure_by_photo(jpeg(landscape()))
    everybody = {face.id for face in admin.faces()}
    left, right = admin.plan_erasure_by_photo(photo, least=0.9)
    assert left.box[2] < 420 < right.box[0]
    assert left.similarities.keys() == right.similarities.keys() == everybody
    assert left.plan is not None
    assert (left.plan.kind, set(left.plan.faces)) == ("photo", everybody)
    (alone, _) = admin.plan_erasure_by_photo(photo, least=0.9999)
    assert (alone.similarities, alone.plan) == ({}, None)
    assert files() == before
    (entry, *_) = admin.audit("search")
    assert (entry.who, len(entry.subject["photos"]), set(entry.subject["found"])) == ("the admin", 1, set())
    asked = ErasureIn(faces=sorted(everybody), by="photo")
    plan = admin.plan_erasure(asked)
    assert plan.digest == left.plan.digest
    order = ErasureOrder(**asked.model_dump(), word="erase", digest=plan.digest, reason="asked for")
    assert admin.erase(order).kind == "photo"
    assert list(admin.faces()) == []
    assert next(admin.erasures()).counts["faces"] == len(everybody)


def test_a_process_that_dies_when_it_keeps_a_thumbnail_leaves_none_of_an_erased_photograph(
    clients: dict[str, Client], own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, write = clients["admin"], thumbnails._write
    image = next(admin.images())
    asked = ErasureIn(image=image.id)
    plan = admin.plan_erasure(asked)
    order = ErasureOrder(**asked.model_dump(), word="erase", digest=plan.digest, reason="asked for")
    eraser = threading.Thread(target=admin.erase, args=[order])

    def write_while_erased_and_die(path: Path, data: bytes) -> None:
        eraser.start()
        eraser.join(timeout=3)
        write(path, data)
        raise KeyError("as if killed")

    monkeypatch.setattr(thumbnails, "_write", write_while_erased_and_die)
    assert admin.http.get(f"/images/{image.id}/picture?size=320").status_code == 500
    eraser.join()
    assert admin.http.get(f"/images/{image.id}").status_code == 404
    assert not list((own.home_folder / "thumbnails").rglob("*.*"))


def test_the_whole_audit_log_and_all_certificates_can_be_paged_through(clients: dict[str, Client]) -> None:
    admin = clients["admin"]
    entries, certificates = list(admin.audit()), list(admin.erasures())
    assert len(entries) > len(certificates) >= 2
    assert [entry.entry_id for entry in entries] == sorted((e.entry_id for e in entries), reverse=True)
    assert list(admin.audit(limit=1)) == entries
    assert list(admin.audit("search", limit=2)) == [entry for entry in entries if entry.action.startswith("search")]
    assert list(admin.erasures(limit=1)) == certificates


def test_a_collection_is_renamed_moved_and_removed(clients: dict[str, Client], tmp_path: Path) -> None:
    admin = clients["admin"]
    admin.add_collection(CollectionIn(name="old", uri=str(tmp_path)))
    with pytest.raises(ServiceProblem, match="needs the role admin"):
        clients["curate"].change_collection("old", CollectionChange(name="new"))
    assert admin.change_collection("old", CollectionChange(name="new")).name == "new"
    (tmp_path / "elsewhere").mkdir()
    assert admin.change_collection("new", CollectionChange(uri=f"{tmp_path}/elsewhere")).uri == f"{tmp_path}/elsewhere"
    with pytest.raises(ServiceProblem, match="no such folder") as caught:
        admin.change_collection("new", CollectionChange(uri=str(tmp_path / "nowhere")))
    assert caught.value.status == 422

    admin.add_schedule(ScheduleIn(name="weekly", collection="new", cron="0 2 * * 1"))
    with pytest.raises(ServiceProblem, match="needs the role admin"):
        clients["curate"].plan_removal("new")
    plan = admin.plan_removal("new")
    assert (plan.collection, plan.schedules, plan.counts["images"]) == ("new", ["weekly"], 0)
    for word, digest, problem in (("erase", plan.digest, "Type the word"), ("remove", "0" * 64, "something else")):
        with pytest.raises(ServiceProblem, match=problem):
            admin.remove_collection("new", RemovalOrder(digest=digest, word=word))
    certificate = admin.remove_collection("new", RemovalOrder(digest=plan.digest, word="remove"), "once")
    assert admin.remove_collection("new", RemovalOrder(digest=plan.digest, word="remove"), "once") == certificate
    assert (certificate.kind, certificate.who) == ("collection", "the admin")
    assert [c.name for c in admin.collections()] == ["archive"]
    assert "weekly" not in [schedule.name for schedule in admin.schedules()]
