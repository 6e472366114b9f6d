"""Search by approximate indexes, on both engines: nothing lost, nothing stale, nothing shown twice.

Thresholds are lowered, so that 4,000 faces are many.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from sqlalchemy import delete, select, text, update

from infra.catalog import encryption
from infra.catalog.custody import erasing
from infra.catalog.database import Catalog
from infra.catalog.queries.filters import AttributeFilter, FaceFilter
from infra.catalog.search import hnsw, neighbours, open_projections, projection
from infra.catalog.search.projection_files import folder_of, remove
from infra.catalog.search.vectors import put_embeddings
from infra.catalog.tables.schema import Content, Embedding, Face, FaceIdentity, Identity, Image
from infra.settings import Settings
from tasks.custody.encryption import switch
from tasks.search import (
    Answer,
    InvalidQuery,
    Query,
    UnknownFace,
    search_faces,
    serving_version,
)
from tasks.search_index import forget_erased, open_index
from tests import crowd
from tests.catalogs import ENGINES, FreshUrl

pytestmark = pytest.mark.slow

COUNT, D = 4_000, 32
FACES = crowd.vectors(COUNT, D, per_person=8)
APPROXIMATE = {"sqlite": "ivf", "postgresql": "hnsw"}


@pytest.fixture(autouse=True, scope="module")
def _many_are_few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "FLAT_UP_TO", 1_000)
        patch.setattr(open_projections, "KEPT_FROM", 100)
        patch.setattr(hnsw, "EXACT_UP_TO", 1_000)
        patch.setattr(neighbours, "MOST", 3_000)
        yield


class Place:
    """A catalog with a crowd, and where its index is kept."""

    def __init__(self, engine: str, url: str, home: Path) -> None:
        self.engine = engine
        self.catalog = Catalog(url)
        self.settings = Settings(home=home, database_url=url)

    def ask(self, query: Query) -> Answer:
        return search_faces(self.catalog, self.settings, query)

    def ids(self, query: Query) -> list[int]:
        return ids(self.ask(query))

    def files(self) -> list[Path]:
        return sorted((self.settings.home / "index").rglob("*.faiss"))


def ids(answer: Answer) -> list[int]:
    return [match.face.face_id for match in answer.matches]


@pytest.fixture(scope="module", params=ENGINES)
def crowded(
    request: pytest.FixtureRequest, fresh_catalog_url: FreshUrl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A crowd that no test changes."""
    place = Place(request.param, fresh_catalog_url(request.param), tmp_path_factory.mktemp("home"))
    crowd.enter(place.catalog, FACES)
    yield place
    place.catalog.close()


@pytest.fixture
def small(catalog: Catalog, tmp_path: Path) -> Place:
    """150 faces, to be changed."""
    crowd.enter(catalog, FACES[:150])
    return Place(catalog.engine.dialect.name, catalog.url, tmp_path)


def truth(face: int, keep: np.ndarray, count: int) -> list[int]:
    """The nearest of the faces that `keep` (COUNT,) keeps, by brute force, without the face itself."""
    similarities = np.where(keep, FACES.astype(np.float64) @ FACES[face - 1], -9)
    similarities[face - 1] = -9
    return (np.lexsort((np.arange(COUNT), -similarities))[:count] + 1).tolist()


def recall(place: Place, conditions: FaceFilter, keep: np.ndarray) -> float:
    found = []
    for face in range(7, COUNT, 97):
        answer = place.ask(Query(faces=(face,), filter=conditions))
        found.append(len(set(ids(answer)) & set(truth(face, keep, 10))) / 10)
    return float(np.mean(found))


ALL = np.ones(COUNT, bool)
NUMBERS = np.arange(1, COUNT + 1)


def test_an_approximate_index_says_so_and_finds_what_brute_force_finds(crowded: Place) -> None:
    answer = crowded.ask(Query(faces=(5,)))
    assert answer.method == APPROXIMATE[crowded.engine]
    similarities = [match.similarity for match in answer.matches]
    expected = FACES[np.array(ids(answer)) - 1].astype(np.float64) @ FACES[4]
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    assert similarities == sorted(similarities, reverse=True)
    assert recall(crowded, FaceFilter(), ALL) >= 0.99


def test_many_faces_asked_for_at_once_get_what_each_gets_alone(crowded: Place) -> None:
    with crowded.catalog.read() as session:
        index = open_index(session, serving_version(session), crowded.settings)
        ids, similarities = index.scan(session, FACES[:20], 30)
        alone = [index.scan(session, FACES[i : i + 1], 30) for i in range(20)]
    assert ids.shape == similarities.shape == (20, 30)
    np.testing.assert_array_equal(ids, np.concatenate([found for found, _ in alone]))
    np.testing.assert_allclose(similarities, np.concatenate([near for _, near in alone]), atol=1e-6)
    expected = np.take_along_axis(FACES[:20] @ FACES.T, ids - 1, axis=1)
    np.testing.assert_allclose(similarities, expected, atol=neighbours.HALF_ERROR)


@pytest.mark.parametrize("count", [16, 128, 1_024])
def test_a_bounded_scan_compares_a_face_with_no_more_than_a_fixed_number(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "BOUND", 300)
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    crowd.enter(catalog, FACES)
    with catalog.read() as session:
        index = projection.build(session, serving_version(session))
        compared = []
        for bounded in (True, False):
            faiss.cvar.indexIVF_stats.reset()
            index.scan(session, FACES[:500], count, bounded=bounded)
            compared.append(faiss.cvar.indexIVF_stats.ndis / 500)
    assert (
        compared[0] < 1.5 * 300 < compared[1]
    )  # cells hold 300 on average, and more where faces are near to each other
    catalog.close()


def test_more_neighbours_than_there_are_faces_are_all_of_them_once(small: Place) -> None:
    with small.catalog.write() as session:
        session.execute(delete(Face).where(Face.id > 140))
        put_embeddings(session, crowd.EMBEDDER, {77: FACES[4]})
        index = open_index(session, serving_version(session), small.settings)
        ids, _ = index.scan(session, FACES[:3], 200)
    assert [sorted(found[found >= 0].tolist()) for found in ids] == [list(range(1, 141))] * 3


def test_a_filter_that_keeps_one_percent_loses_nothing(crowded: Place) -> None:
    assert recall(crowded, FaceFilter(collections=("small",)), NUMBERS % crowd.SMALL_EVERY == 0) >= 0.99


def test_several_conditions_hold_together(crowded: Place) -> None:
    smiling = AttributeFilter.parse("expression=happiness")
    conditions = FaceFilter.of(min_quality=0.9, taken_from="2010-01-01", taken_until="2014-12-31", attributes=[smiling])
    numbers = range(1, COUNT + 1)
    keep = [crowd.quality_of(i) >= 0.9 and crowd.smiles(i) and "2010" <= crowd.day_of(i)[:4] <= "2014" for i in numbers]
    assert sum(keep) < 50
    assert crowded.ids(Query(faces=(5,), filter=conditions, limit=50)) == truth(5, np.array(keep), sum(keep))


def test_a_filter_that_keeps_three_faces_gives_all_three_and_says_that_it_compared_all(crowded: Place) -> None:
    conditions = FaceFilter(collections=("small",), min_quality=0.9, taken_from="2000-01-01", taken_until="2002-12-31")  # type: ignore[arg-type]
    numbers = range(1, COUNT + 1)
    kept = [i for i in numbers if i % 100 == 0 and crowd.quality_of(i) >= 0.9 and crowd.day_of(i)[:4] <= "2002"]
    answer = crowded.ask(Query(faces=(5,), filter=conditions))
    assert (sorted(ids(answer)), answer.method) == (kept, "exact")
    assert answer.after is None


def test_pages_join_to_one_answer(crowded: Place) -> None:
    query = Query(faces=(5,), filter=FaceFilter(min_quality=0.3), limit=7)
    whole = crowded.ids(replace(query, limit=49))
    joined, after = [], None
    for _ in range(7):
        answer = crowded.ask(replace(query, after=after))
        joined, after = joined + ids(answer), answer.after
    assert joined == whole
    assert after is not None


def test_the_last_page_says_that_it_is_the_last(small: Place) -> None:
    answer = small.ask(Query(faces=(5,), limit=100))
    assert answer.after is not None
    rest = small.ask(Query(faces=(5,), limit=100, after=answer.after))
    assert (len(answer.matches), len(rest.matches), rest.after) == (100, 49, None)


def test_a_place_in_another_answer_is_refused(crowded: Place) -> None:
    after = crowded.ask(Query(faces=(5,))).after
    with pytest.raises(InvalidQuery, match="another question"):
        crowded.ask(Query(faces=(6,), after=after))
    with pytest.raises(InvalidQuery, match="another question"):
        crowded.ask(Query(faces=(5,), filter=FaceFilter(min_quality=0.5), after=after))
    for nonsense in ("", "x", "e30=", "WzEsMl0=", "é"):
        with pytest.raises(InvalidQuery, match="no place in an answer"):
            crowded.ask(Query(faces=(5,), after=nonsense))


def test_several_faces_of_a_person_are_asked_for_by_their_mean_similarity(crowded: Place) -> None:
    person = (1, *truth(1, ALL, 2))
    answer = crowded.ask(Query(faces=person, limit=5))
    mean = (FACES.astype(np.float64) @ FACES[np.array(person) - 1].T).mean(axis=1)
    mean[np.array(person) - 1] = -9
    assert ids(answer) == (np.argsort(-mean)[:5] + 1).tolist()
    np.testing.assert_allclose([m.similarity for m in answer.matches], np.sort(mean)[::-1][:5], atol=1e-6)
    assert answer.asked == 3


def test_a_search_by_person_finds_others(small: Place) -> None:
    members = (1, *truth(1, NUMBERS <= 150, 3))
    with small.catalog.write() as session:
        session.add(Identity(id=9, model_version_id=crowd.EMBEDDER))
        session.flush()
        session.add_all(
            FaceIdentity(face_id=face, model_version_id=crowd.EMBEDDER, identity_id=9, run_id=1) for face in members
        )
    found = small.ask(Query(identity_id=9, limit=200))
    assert found.asked == 4
    assert sorted([*ids(found), *members]) == list(range(1, 151))
    assert small.ids(Query(faces=(1,), filter=FaceFilter(identity_id=9))) == list(members[1:])


def test_whoever_is_not_there_is_named(small: Place) -> None:
    with small.catalog.write() as session:
        session.execute(delete(Embedding).where(Embedding.face_id == 3))
    for query, said in (
        (Query(faces=(1, 999)), "face 999: not in the catalog"),
        (Query(faces=(3,)), "face 3: .*without an embedding by embed@1"),
        (Query(identity_id=4), "knows no person 4"),
    ):
        with pytest.raises(UnknownFace, match=said):
            small.ask(query)
    for query, said in (
        (Query(), "names nobody"),
        (Query(faces=(1,), limit=0), "limit 0: ask for 1 to 1,000"),
        (Query(faces=(1,), limit=1_001), "limit 1001"),
        (Query(faces=tuple(range(1, 102))), "101 faces at once"),
        (Query(faces=(1,), identity_id=1), "one of them"),
    ):
        with pytest.raises(InvalidQuery, match=said):
            small.ask(query)


def test_the_index_follows_every_change_of_the_rows(small: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Query(faces=(5,), limit=1)
    [nearest] = small.ids(query)
    monkeypatch.setattr(projection, "build", None)  # it follows, and is not made anew
    with small.catalog.write() as session:
        put_embeddings(session, crowd.EMBEDDER, {77: FACES[4]})  # a face that changed
    assert small.ids(query) == [77]
    with small.catalog.write() as session:
        session.execute(delete(Face).where(Face.id == 77))
    assert small.ids(query) == [nearest]
    with small.catalog.write() as session:
        session.execute(delete(Content).where(Content.id == nearest))
    assert small.ids(query) != [nearest]
    with small.catalog.write() as session:
        session.execute(update(Image).where(Image.id.not_in([5, 9])).values(status="missing"))
    assert small.ids(replace(query, limit=10)) == [9]
    with small.catalog.write() as session:
        session.execute(update(Image).values(status="done"))
    assert len(small.ids(replace(query, limit=10))) == 10


def test_pages_stay_stable_while_faces_come(small: Place) -> None:
    query = Query(faces=(5,), limit=20)
    first = small.ask(query)
    with small.catalog.write() as session:
        put_embeddings(session, crowd.EMBEDDER, {ids(first)[-1] + 0: FACES[4]})  # the last one moves to the front
    second = small.ask(replace(query, after=first.after))
    assert not set(ids(first)) & set(ids(second))
    assert len(ids(second)) == 20


# --- the index on disk (SQLite)


@pytest.fixture
def on_disk(fresh_catalog_url: FreshUrl, tmp_path: Path) -> Iterator[Place]:
    place = Place("sqlite", fresh_catalog_url("sqlite"), tmp_path)
    crowd.enter(place.catalog, FACES[:1_200])  # more than are compared one by one
    open_projections._open.clear()
    yield place
    place.catalog.close()


def another_process() -> None:
    open_projections._open.clear()


def test_an_index_is_read_back_by_the_next_process_and_not_built_again(
    on_disk: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = on_disk.ask(Query(faces=(5,)))
    assert first.method == "ivf"
    [file] = on_disk.files()
    another_process()
    with monkeypatch.context() as patch:
        patch.setattr(projection, "build", None)
        assert on_disk.ask(Query(faces=(5,))) == first
        with on_disk.catalog.write() as session:
            put_embeddings(session, crowd.EMBEDDER, {77: FACES[4]})
        another_process()
        assert on_disk.ids(Query(faces=(5,)))[0] == 77  # what came since is taken over
    assert on_disk.files() == [file]


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_file_is_mapped_and_left_as_it_is_until_enough_has_changed(
    on_disk: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "exact":
        monkeypatch.setattr(projection, "FLAT_UP_TO", 2_000)
    answer = on_disk.ask(Query(faces=(5,)))
    assert answer.method == kind
    nearest = ids(answer)[0]
    another_process()
    monkeypatch.setattr(projection, "build", None)
    with on_disk.catalog.write() as session:
        put_embeddings(session, crowd.EMBEDDER, {77: FACES[4]})
    assert on_disk.ids(Query(faces=(5,)))[0] == 77
    [file] = on_disk.files()
    assert str(file) in Path("/proc/self/maps").read_text()
    for changed in range(100, 140):  # 3% of the faces
        with on_disk.catalog.write() as session:
            put_embeddings(session, crowd.EMBEDDER, {changed: FACES[changed + 1_000]})
        assert on_disk.ids(Query(faces=(5,)))[:2] == [77, nearest]
    [merged] = on_disk.files()
    assert merged != file
    assert str(merged) in Path("/proc/self/maps").read_text()
    assert str(file) not in Path("/proc/self/maps").read_text()
    assert len(on_disk.ids(Query(faces=(5,), limit=1_000))) == 1_000


def test_two_processes_take_turns_at_merging(on_disk: Place) -> None:
    on_disk.ask(Query(faces=(5,)))
    ours = dict(open_projections._open)
    for first in (300, 400):
        with on_disk.catalog.write() as session:
            session.execute(delete(Face).where(Face.id == first))
        another_process()
        on_disk.ask(Query(faces=(5,)))  # the other process writes a file and removes ours
    open_projections._open.update(ours)
    with on_disk.catalog.write() as session:
        session.execute(delete(Face).where(Face.id == 500))
    found = on_disk.ids(Query(faces=(5,), limit=1_000))
    assert not {300, 400, 500} & set(found)
    erased = FACES[499].astype(np.float16).tobytes()
    assert not any(erased in file.read_bytes() for file in on_disk.files())


@pytest.mark.parametrize("damage", ["cut", "noise", "gone", "note", "contract", "older rows"])
def test_an_index_that_does_not_fit_the_rows_is_made_anew(on_disk: Place, damage: str) -> None:
    first = on_disk.ask(Query(faces=(5,)))
    [file] = on_disk.files()
    [note] = file.parent.glob("*.json")
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        file.write_bytes(data[:100] + bytes(len(data) - 100))
    elif damage == "gone":
        file.unlink()
    elif damage == "note":
        note.write_text("{}")
    elif damage == "contract":
        note.write_text(note.read_text().replace('"contract": "embed"', '"contract": "other"'))
    else:  # as if a backup of the catalog was restored, in which the same faces had other vectors
        other = [{"face": 1_200 - i, "vector": FACES[i].tobytes()} for i in range(1_200)]
        with on_disk.catalog.engine.begin() as connection:
            for event in ("insert", "update", "delete"):
                connection.execute(text(f"DROP TRIGGER embedding_{event}"))
            connection.execute(text("UPDATE embedding SET vector = :vector WHERE face_id = :face"), other)
    another_process()
    if damage == "older rows":
        assert [1_201 - face for face in on_disk.ids(Query(faces=(1_196,)))] == ids(first)
    else:
        assert on_disk.ask(Query(faces=(5,))) == first


def test_the_bytes_of_an_erased_face_leave_the_index_on_disk(on_disk: Place) -> None:
    on_disk.ask(Query(faces=(5,)))
    erased = FACES[499].astype(np.float16).tobytes()
    assert sum(erased in file.read_bytes() for file in on_disk.files()) == 1
    with on_disk.catalog.write() as session:
        session.execute(delete(Face).where(Face.id == 500))
    another_process()
    forget_erased(on_disk.catalog, on_disk.settings)
    assert len(on_disk.files()) == 1
    assert not any(erased in file.read_bytes() for file in on_disk.settings.home.rglob("*") if file.is_file())
    forget_erased(on_disk.catalog, on_disk.settings)
    assert 500 not in on_disk.ids(Query(faces=(5,), limit=1_000))


def test_a_search_after_an_erasure_cleans_the_disk_by_itself(on_disk: Place) -> None:
    on_disk.ask(Query(faces=(5,)))
    with on_disk.catalog.write() as session:
        session.execute(delete(Face).where(Face.id == 500))
    on_disk.ask(Query(faces=(5,)))
    erased = FACES[499].astype(np.float16).tobytes()
    assert not any(erased in file.read_bytes() for file in on_disk.files())


@pytest.mark.parametrize("moment", ["before it builds", "while it writes"])
def test_a_search_that_began_before_an_erasure_writes_nothing_of_it_to_disk(
    on_disk: Place, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = projection.faiss.write_index

    def erase() -> None:
        with on_disk.catalog.write() as session:
            session.execute(delete(Face).where(Face.id == 500))
        remove(folder_of(on_disk.settings.home_folder, on_disk.catalog.url))

    def write_and_erase(index: object, file: str) -> None:
        write(index, file)
        erase()
        Path(file).parent.mkdir()
        write(index, file)  # as if its folder had been removed a moment before

    with on_disk.catalog.read() as session:
        version = serving_version(session)
        if moment == "before it builds":
            erase()
        else:
            monkeypatch.setattr(projection.faiss, "write_index", write_and_erase)
        open_index(session, version, on_disk.settings)
    home = on_disk.settings.home_folder
    erased = FACES[499].astype(np.float16).tobytes()
    assert not any(erased in file.read_bytes() for file in home.rglob("*") if file.is_file())
    monkeypatch.undo()
    assert 500 not in on_disk.ids(Query(faces=(5,), limit=1_000))


def test_an_index_reaches_the_disk_although_faces_came_while_it_was_built(on_disk: Place) -> None:
    with on_disk.catalog.read() as session:
        version = serving_version(session)
        with on_disk.catalog.write() as night:
            put_embeddings(night, crowd.EMBEDDER, {5: FACES[4]})
        open_index(session, version, on_disk.settings)
    assert len(on_disk.files()) == 1


def test_no_readable_index_is_left_of_encrypted_embeddings(
    on_disk: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = on_disk.settings
    elsewhere = settings.model_copy(update={"home": tmp_path / "elsewhere"})
    search_faces(on_disk.catalog, elsewhere, Query(faces=(5,)))
    another_process()
    with on_disk.catalog.read() as session:
        version = serving_version(session)
        with monkeypatch.context() as patch:
            patch.setenv("VISAGE_EMBEDDING_KEY", encryption.new_key())
            patch.setattr(erasing, "scrub", lambda engine: None)  # it would wait a minute for this session's end
            switch(settings, "officer", True)
            on_disk.catalog = Catalog(on_disk.catalog.url)
        open_index(session, version, settings)  # of a search that had begun
    assert on_disk.files() == []
    another_process()
    assert len(list(elsewhere.home_folder.rglob("*.faiss"))) == 1
    search_faces(on_disk.catalog, elsewhere, Query(faces=(5,)))
    assert list(tmp_path.rglob("*.faiss")) == []


def test_what_a_killed_process_left_half_written_goes_with_the_erased(on_disk: Place) -> None:
    on_disk.ask(Query(faces=(5,)))
    [file] = on_disk.files()
    for name in ("abc-1-2.faiss.part", "abc-1-2.faiss"):
        (file.parent / name).write_bytes(b"half of an index")
    forget_erased(on_disk.catalog, on_disk.settings)
    assert on_disk.files() == [file]
    assert list(file.parent.glob("*.part")) == []


def test_an_index_that_nobody_can_use_any_more_goes_with_the_erased(on_disk: Place) -> None:
    on_disk.ask(Query(faces=(5,)))
    [note] = on_disk.files()[0].parent.glob("*.json")
    note.write_text("broken")
    forget_erased(on_disk.catalog, on_disk.settings)
    assert on_disk.files() == []


def test_a_crowd_that_outgrows_its_index_gets_another(small: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small.ask(Query(faces=(5,))).method == "exact"
    monkeypatch.setattr(projection, "FLAT_UP_TO", 140)
    monkeypatch.setattr(hnsw, "EXACT_UP_TO", 140)
    with small.catalog.write() as session:
        session.execute(delete(Face).where(Face.id == 150))
    assert small.ask(Query(faces=(5,))).method == APPROXIMATE[small.engine]
    with small.catalog.read() as session:
        assert session.scalar(select(Face.id).where(Face.id == 150)) is None
