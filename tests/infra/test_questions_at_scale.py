"""What SQLite does for an answer, in steps of its machine: as much for a page, whatever the catalog holds, and for a walk what
is walked. PostgreSQL plans by its statistics, and counts no steps.
"""

import shutil
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from infra.catalog import collections, sides
from infra.catalog.database import Catalog
from infra.catalog.exchange import copying
from infra.catalog.exchange.portable import CARRIED, Selection
from infra.catalog.identities.enforcement import EXEMPLARS
from infra.catalog.identities.people import exemplars_of
from infra.catalog.queries import views
from infra.catalog.queries.filters import AttributeFilter, FaceFilter
from infra.catalog.queries.photographs import PhotoFilter, Progress, labels, photographs, progress
from infra.catalog.queries.questions import ask, count_by
from infra.catalog.tables.schema import FaceIdentity, Image, RunStatus
from infra.catalog.work.runs import close_run, open_run
from tests import crowd
from tests.catalogs import counted_steps

COUNTS = 2_000, 16_000
PAGE = 20

Action = Callable[[Session], Sized]


@pytest.fixture(scope="module")
def catalogs(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Catalog]]:
    """Catalogs of few and of many faces."""
    folder, opened = tmp_path_factory.mktemp("asked"), []
    for count in COUNTS:
        path = folder / f"{count}.db"
        shutil.copyfile(migrated_sqlite, path)
        opened.append(Catalog(f"sqlite:///{path}"))
        faces = crowd.vectors(count, 8)
        crowd.enter(opened[-1], faces[:0])
        with opened[-1].write() as session:
            crowd.fill(session, faces, crowd.people_of(count, 8) + 1)
    yield opened
    for catalog in opened:
        catalog.close()


def steps(catalogs: list[Catalog], action: Action) -> list[int]:
    found = []
    for catalog in catalogs:
        with counted_steps(catalog) as taken, catalog.read() as session:
            assert len(action(session)) > 0
        found.append(taken())
    return found


def asking(question: str) -> object:
    return pytest.param(lambda session: ask(session, question, PAGE), id=question)


def on_the_wall(**wanted: Any) -> Action:
    return lambda session: photographs(session, PhotoFilter(**wanted), None, PAGE)


def filtered(filter_: FaceFilter) -> Action:
    def checked(session: Session) -> Sized:
        filter_.check(session)
        return filter_.clauses(session)

    return checked


@pytest.mark.parametrize(
    "page",
    [
        asking("expression = happiness"),
        asking("expression = surprise"),
        asking("not expression = happiness"),
        asking("expression is known"),
        asking("age < 30"),
        asking("age > 60 and expression = happiness"),
        asking("quality > 0.5"),
        asking("quality >= 0.98"),
        asking("age.confidence > 0.5"),
        asking("collection = large"),
        asking("collection != small and quality > 0.2"),
        asking("person = 12"),
        asking("person != 12"),
        asking("photo = 17.jpg"),
        asking("photo != 17.jpg"),
        lambda session: views.faces(session, "large", None, 0.0, PAGE),
        lambda session: views.faces(session, None, 12, 0.0, PAGE),
        on_the_wall(),
        on_the_wall(collection="large"),
        on_the_wall(label=("expression", "happiness")),
        on_the_wall(label=("expression", "surprise")),
        on_the_wall(question="age < 30"),
        labels,
        filtered(FaceFilter(attributes=(AttributeFilter(name="expression", label="happiness"),))),
    ],
)
def test_a_page_costs_as_much_among_many_faces_as_among_few(
    catalogs: list[Catalog], monkeypatch: pytest.MonkeyPatch, page: Action
) -> None:
    monkeypatch.setattr(sides, "FEW", 50)
    few, many = steps(catalogs, page)
    assert many < 2 * few  # of eight times as many


@pytest.mark.parametrize(
    "walk",
    [
        lambda session: count_by(session, "", "expression"),
        lambda session: count_by(session, "quality > 0.1", "age"),
        lambda session: count_by(session, "expression = happiness", "taken-year"),
        *(
            lambda session, carried=carried: list(Selection(session, 1).rows(carried))
            for carried in CARRIED
            if carried.name in {"content", "image", "face", "embedding", "attribute", "face_identity", "identity"}
        ),
    ],
)
def test_a_walk_costs_as_much_a_face_among_many_as_among_few(
    catalogs: list[Catalog], monkeypatch: pytest.MonkeyPatch, walk: Action
) -> None:
    monkeypatch.setattr(sides, "FEW", 50)
    monkeypatch.setattr(copying, "PAGE", 100)
    few, many = steps(catalogs, walk)
    assert many / COUNTS[1] < 1.3 * few / COUNTS[0]


def test_a_look_at_how_far_a_run_has_got_costs_as_much_in_a_large_collection_as_in_a_small(
    catalogs: list[Catalog],
) -> None:
    for catalog in catalogs:
        with catalog.write() as session:
            run = open_run(session, collections.by_name(session, "large").id, "r")
            session.execute(update(Image).where(Image.id <= PAGE).values(run_id=run.id))
            close_run(session, run.id, RunStatus.DONE, {})
    with catalogs[0].read() as session:
        assert progress(session, run.id) == Progress(run.id, "done", PAGE, PAGE)
    few, many = steps(catalogs, lambda session: [progress(session, run.id)])
    assert many < 2 * few


def test_who_stands_for_a_person_costs_as_much_whether_they_have_few_faces_or_many(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    found = []
    for count in (100, 5_000):
        path = tmp_path / f"{count}.db"
        shutil.copyfile(migrated_sqlite, path)
        catalog = Catalog(f"sqlite:///{path}")
        faces = crowd.vectors(count, 8)
        crowd.enter(catalog, faces[:0])
        with catalog.write() as session:
            crowd.fill(session, faces, np.ones(count, np.int64))
            session.execute(update(FaceIdentity).where(FaceIdentity.face_id > EXEMPLARS).values(exemplar=False))
        with counted_steps(catalog) as taken, catalog.read() as session:
            assert len(exemplars_of(session, crowd.EMBEDDER, 8, [1])) == EXEMPLARS
        found.append(taken())
        catalog.close()
    assert found[1] <= 1.1 * found[0]
