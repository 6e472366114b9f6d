"""Questions in words, counts, copies and the SQL views: the same answers on both databases."""

from collections import Counter
from collections.abc import Callable, Iterator
from threading import Event, Thread
from time import monotonic

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, text, update

from infra.catalog.database import Catalog
from infra.catalog.queries.language import InvalidQuestion
from infra.catalog.queries.photographs import PhotoFilter, digest, photographs
from infra.catalog.queries.questions import NEAR, _alike, ask, count_by, duplicates
from infra.catalog.tables.schema import (
    Attribute,
    Content,
    FaceIdentity,
    Failure,
    Identity,
    Image,
    ImageStatus,
)
from infra.catalog.work import runs
from tests import crowd
from tests.catalogs import ENGINES, FreshUrl
from tests.command import visage
from tests.crowd import collection_of, day_of, quality_of, smiles

FACES = 300
NAMED = (7, 8, 9)


@pytest.fixture(scope="module", params=ENGINES)
def catalog(request: pytest.FixtureRequest, fresh_catalog_url: FreshUrl) -> Iterator[Catalog]:
    catalog = Catalog(fresh_catalog_url(request.param))
    crowd.enter(catalog, crowd.vectors(FACES, 8), indexed=False)
    with catalog.write() as session:
        session.add(Identity(id=5, model_version_id=crowd.EMBEDDER, name="Marie Curie"))
        session.add(Identity(id=6, model_version_id=crowd.EMBEDDER, name="Élise Émond"))
        session.flush()
        session.add(FaceIdentity(face_id=11, model_version_id=crowd.EMBEDDER, identity_id=6, run_id=1))
        session.execute(update(Image).where(Image.id == 11).values(key="Île/11.jpg"))
        for face in NAMED:
            session.add(FaceIdentity(face_id=face, model_version_id=crowd.EMBEDDER, identity_id=5, run_id=1))
        session.execute(update(Image).where(Image.id == FACES).values(status=ImageStatus.MISSING.value))
        for content, looks in {1: "00000000000000ff", 2: "00000000000000fd", 3: "0f000000000000ff"}.items():
            session.execute(update(Content).where(Content.id == content).values(perceptual_hash=looks))
        session.execute(update(Image).where(Image.id == 20).values(content_id=10))
        sad = {"name": "expression", "kind": "category", "unit": "", "label": "sadness"}
        session.add(Attribute(face_id=20, model_version_id=3, **sad))  # of a photo that is there no more
    yield catalog
    catalog.close()


def answer(catalog: Catalog, question: str) -> set[int]:
    with catalog.read() as session:
        return {face.face_id for face in ask(session, question, FACES)}


def expected(test: Callable[[int], bool]) -> set[int]:
    there = set(range(1, FACES)) - {20}
    return {face for face in there if test(face)}


@pytest.mark.parametrize(
    ("question", "test"),
    [
        ("", lambda i: True),
        ("expression = happiness", smiles),
        ("NOT expression = happiness", lambda i: not smiles(i)),
        ("expression is unknown", lambda i: not smiles(i)),
        ("expression.confidence >= 0.95", lambda i: False),
        ("quality > 0.2 and collection = small", lambda i: quality_of(i) > 0.2 and collection_of(i) == "small"),
        ("taken = 2003", lambda i: day_of(i).startswith("2003")),
        ("taken <= 2003-05", lambda i: day_of(i)[:7] <= "2003-05"),
        ("taken > 2003", lambda i: day_of(i)[:4] > "2003"),
        ("person = 'Marie Curie' or person = 5", lambda i: i in NAMED),
        ('person ~ "CURIE" and not person is unknown', lambda i: i in NAMED),
        ("expression = sadness or collection ~ nosuch", lambda i: False),
        ('person ~ "élise é"', lambda i: i == 11),
        ("photo ~ ÎLE/ and photo ~ île/", lambda i: i == 11),
        ("photo in (3.jpg, '17.jpg')", lambda i: i in (3, 17)),
        ("(quality < 0.01 or quality >= 0.29) and expression != sadness", lambda i: smiles(i) and not 10 <= i < 290),
        ("found >= 2020 and width = 1", lambda i: True),
        ("found < 2020-01-31", lambda i: False),
        ("(" * 450 + "quality < 0.1" + ")" * 450, lambda i: quality_of(i) < 0.1),
        ("not (photo = x or score < 0 and " * 6 + "quality < 0.1" + ")" * 6, lambda i: True),
    ],
)
def test_questions_mean_what_they_say(catalog: Catalog, question: str, test: Callable[[int], bool]) -> None:
    assert answer(catalog, question) == expected(test)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("colour = red", "'colour' is nothing that can be asked for; there are collection, photo, taken"),
        ("expression = hapiness", "no face has expression 'hapiness'; the catalog holds: happiness, sadness"),
        ("expression in (happiness, hapiness)", "no face has expression 'hapiness'"),
        ("not expression != hapiness", "no face has expression 'hapiness'"),
        ("collection = larg", "no collection is called 'larg' (there are: large, small)"),
        ("age > 60", "with --sensitive"),
        ("quality = good", "'good' is compared with a number"),
        ("quality ~ 0.5", "~ asks for a part of a text"),
        ("person < Marie", "compared with =, != or ~"),
        ("taken = yesterday", "'yesterday' is no date"),
        ("taken = 2021-13", "'2021-13' is no date"),
        ("found > 9999", "'9999' is no date"),
        ("quality > ", "cannot be read from >>> on: quality >"),
        ("quality > 0.5; DROP TABLE face", "cannot be read from >>> on: quality > 0.5 >>> ; DROP"),
        ("x" * 2000, "2,000 characters"),
        ("not (photo = x or " * 50 + "quality > 0" + ")" * 50, "more than 20 deep in each other"),
    ],
)
def test_questions_that_say_nothing_clear_are_refused(catalog: Catalog, question: str, message: str) -> None:
    with pytest.raises(InvalidQuestion) as refused:
        answer(catalog, question)
    assert message in str(refused.value)


@pytest.mark.parametrize("value", ["' OR 1=1 --", "%", "_", "\\", "\x00ab"[1:], "Robert'); DROP TABLE face;--"])
def test_what_looks_like_sql_is_only_text(catalog: Catalog, value: str) -> None:
    assert answer(catalog, f'person ~ "{value}"') == set()
    assert len(answer(catalog, "")) == FACES - 2


@given(st.text(max_size=60))
def test_whatever_is_asked_is_answered_or_refused(catalog: Catalog, question: str) -> None:
    try:
        answer(catalog, question.replace("\x00", ""))
    except InvalidQuestion:
        return


def test_pages_hold_every_face_once(catalog: Catalog) -> None:
    seen: list[int] = []
    with catalog.read() as session:
        while page := ask(session, "expression = happiness", 13, after=seen[-1] if seen else 0):
            seen += [face.face_id for face in page]
    assert seen == sorted(expected(smiles))


def test_a_photo_is_found_by_every_key_it_lies_under(catalog: Catalog) -> None:
    with catalog.read() as session:
        for key in ("10.jpg", "20.jpg"):
            found = photographs(session, PhotoFilter(text=key), None, 9)
            assert [(photo.key, photo.others) for photo in found if photo.key in ("10.jpg", "20.jpg")] == [(key, 1)]
        assert [photo.key for photo in photographs(session, PhotoFilter(text="îLE"), None, 9)] == ["Île/11.jpg"]
        everything = [photo.key for photo in photographs(session, PhotoFilter(), None, FACES)]
    assert ("10.jpg" in everything, "20.jpg" in everything) == (True, False), "each of its bytes once"


def test_a_photo_that_failed_under_two_keys_is_found_by_either_reason(catalog: Catalog) -> None:
    with catalog.write() as session:
        run = runs.open_run(session, session.get_one(Image, 10).collection_id, "recipe")
        for image_id, reason in ((10, "store_unavailable"), (20, "timeout")):
            image = session.get_one(Image, image_id)
            image.status = ImageStatus.FAILED.value
            failed = {"run_id": run.id, "collection_id": run.collection_id, "image_id": image_id, "key": image.key}
            session.add(Failure(**failed, stage="read", reason=reason, message="", retryable=True))
        session.flush()

        def found(reason: str | None) -> list[str]:
            wanted = PhotoFilter(status=ImageStatus.FAILED, reason=reason)
            return [photo.key for photo in photographs(session, wanted, None, FACES)]

        assert found("store_unavailable") == ["10.jpg"]
        assert found("timeout") == ["20.jpg"]
        assert found("corrupt") == []
        assert found(None) == ["10.jpg"]
        session.rollback()


def test_a_photograph_whose_row_is_held_is_removed_only_afterwards(catalog: Catalog) -> None:
    begun, removed = Event(), Event()

    def remove() -> None:
        begun.set()
        with catalog.write() as session:
            session.execute(delete(Failure).where(Failure.image_id == 30))
            session.execute(delete(Image).where(Image.id == 30))
            removed.set()
            session.rollback()

    remover = Thread(target=remove)
    with catalog.write() as session:
        assert digest(session, 30, hold=True) is not None
        assert digest(session, 10**6, hold=True) is None
        remover.start()
        assert begun.wait(10)
        assert not removed.wait(0.5)
    remover.join()
    assert removed.is_set()


def counts(catalog: Catalog, by: str, question: str = "") -> dict[str | None, int]:
    with catalog.read() as session:
        return {found.value: found.faces for found in count_by(session, question, by)}


def test_counts_are_those_of_the_faces(catalog: Catalog) -> None:
    there = expected(lambda i: True)
    assert counts(catalog, "taken-year") == Counter(day_of(i)[:4] for i in there)
    assert counts(catalog, "collection", "quality >= 0.1") == Counter(collection_of(i) for i in there if i >= 100)
    assert counts(catalog, "expression") == {"happiness": len(expected(smiles)), None: len(there - expected(smiles))}
    assert counts(catalog, "person") == {"Marie Curie": 3, "Élise Émond": 1, None: len(there) - 4}
    assert counts(catalog, "quality") == {"0.0": 98, "0.1": 100, "0.2": 100}
    assert sum(counts(catalog, "found-day").values()) == len(there)
    with pytest.raises(InvalidQuestion, match="cannot be counted by 'mood'; they can by taken-year"):
        counts(catalog, "mood")


def test_copies_are_found_by_their_bytes_and_by_their_looks(catalog: Catalog) -> None:
    with catalog.read() as session:
        same = duplicates(session, 1)
        alike = duplicates(session, 1, near=3)
        [*_] = duplicates(session, 2, near=0)
        with pytest.raises(InvalidQuestion, match="up to 0 to 3 of 64 bits"):
            duplicates(session, 1, near=9)
    assert [(c.keys, c.same_bytes) for c in same] == [(("10.jpg", "20.jpg"), True)]
    assert [(c.keys, c.distance) for c in alike if not c.same_bytes] == [(("1.jpg", "2.jpg"), 1)]
    assert [c.keys for c in alike if c.same_bytes] == [("10.jpg", "20.jpg")], "it has no perceptual hash"


def test_the_command_says_how_near_copies_can_be_looked_for() -> None:
    ended = visage("duplicates", "small", "--near", "9")
    assert (ended.code, "less than or equal to 3" in ended.err) == (2, True), ended.err


def test_thousands_of_pictures_that_look_the_same_are_one_group_at_once() -> None:
    blank = dict.fromkeys(range(10_000), 0) | {10_000: 0b111, 10_001: 0b1111}
    began = monotonic()
    [(members, distance)] = _alike(blank, 3)
    assert (len(members), distance) == (10_002, 3)
    assert monotonic() - began < 5, "in pairs they took minutes"


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), st.integers(0, 2**64 - 1), st.data())
def test_no_near_pair_is_missed(others: list[int], picture: int, data: st.DataObject) -> None:
    bits = data.draw(st.sets(st.integers(0, 63), max_size=NEAR))
    copy = picture ^ sum(1 << bit for bit in bits)
    groups = _alike(dict(enumerate([picture, copy, *others])), NEAR)
    assert any({0, 1} <= set(members) for members, _ in groups)
    assert sorted(member for members, _ in groups for member in members) == list(range(len(others) + 2))


def test_views_have_stable_names_and_columns(catalog: Catalog) -> None:
    columns = {
        "visage_photos": "photo_id collection key bytes status modified_at sha256 format width height taken_at",
        "visage_faces": "face_id photo_id collection key x1 y1 x2 y2 score quality found_at detector detector_version",
        "visage_attributes": "face_id name kind unit value label confidence model model_version",
        "visage_people": "face_id person_id name model model_version",
        "visage_runs": "run_id collection status started_at finished_at error",
        "visage_failures": "failure_id run_id collection key stage reason message retryable failed_at resolved_at",
    }
    with catalog.read() as session:
        for view, names in columns.items():
            assert list(session.execute(text(f"SELECT * FROM {view}")).keys()) == names.split()
        rows = session.execute(text("SELECT count(DISTINCT face_id) FROM visage_faces")).scalar()
        people = session.execute(text("SELECT face_id FROM visage_people ORDER BY face_id")).scalars().all()
    assert rows == FACES - 2
    assert tuple(people) == (*NAMED, 11)


def test_perceptual_hashes_survive_what_copies_suffer_and_tell_pictures_apart() -> None:
    from tasks.images.perceptual_hash import perceptual_hash  # noqa: PLC0415
    from tests.portraits import jpeg, landscape, portrait  # noqa: PLC0415

    def bits(a: str, b: str) -> int:
        return int(np.bitwise_count(np.uint64(int(a, 16) ^ int(b, 16))))

    from tasks.decode import decode  # noqa: PLC0415

    original = perceptual_hash(portrait(1024))
    assert len(original) == 16
    assert bits(original, perceptual_hash(portrait(400))) <= 3
    assert bits(original, perceptual_hash(decode(jpeg(portrait(1024), quality=40)).pixels)) <= 3
    assert bits(original, perceptual_hash(landscape(1024))) > 16
