"""Filters: what they say they keep, they keep; what nobody can mean is refused with the reason."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
from sqlalchemy import select

from infra.catalog.collections import UnknownCollection
from infra.catalog.database import Catalog
from infra.catalog.queries.filters import AttributeFilter, FaceFilter, InvalidFilter
from infra.catalog.tables.schema import Face, Image
from infra.catalog.visibility import visible
from tests import crowd
from tests.catalogs import ENGINES, FreshUrl

COUNT = 400


@pytest.fixture(scope="module", params=ENGINES)
def crowded(request: pytest.FixtureRequest, fresh_catalog_url: FreshUrl) -> Iterator[Catalog]:
    catalog = Catalog(fresh_catalog_url(request.param))
    crowd.enter(catalog, crowd.vectors(COUNT, 4), indexed=False)
    yield catalog
    catalog.close()


def day(face: int) -> str:
    return crowd.day_of(face)[:10]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({}, lambda _: True),
        ({"collections": ("small",)}, lambda i: i % 100 == 0),
        ({"collections": ("small", "large")}, lambda _: True),
        ({"min_quality": 0.25}, lambda i: i / 1000 >= 0.25),
        ({"max_quality": 0.25}, lambda i: i / 1000 <= 0.25),
        ({"min_quality": 0.1, "max_quality": 0.2}, lambda i: 0.1 <= i / 1000 <= 0.2),
        ({"taken_from": "2012-03-01"}, lambda i: day(i) >= "2012-03-01"),
        ({"taken_until": day(7)}, lambda i: day(i) <= day(7)),  # a day is included to its end
        ({"taken_until": "9999-12-31"}, lambda _: True),
        ({"taken_from": day(7), "taken_until": day(7)}, lambda i: day(i) == day(7)),
        ({"attributes": ["expression=happiness"]}, crowd.smiles),
        ({"attributes": ["expression=2.5..3.5"]}, crowd.smiles),
        ({"attributes": ["expression=3.5.."]}, lambda _: False),
        ({"attributes": ["expression=..3"]}, crowd.smiles),
        ({"attributes": ["expression=happiness"], "min_quality": 0.3}, lambda i: crowd.smiles(i) and i >= 300),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_filter_keeps_what_it_says(crowded: Catalog, conditions: dict[str, Any], kept: Callable[[int], bool]) -> None:
    attributes = [AttributeFilter.parse(told) for told in conditions.get("attributes", ())]
    wanted = FaceFilter.of(**conditions | {"attributes": attributes})
    with crowded.read() as session:
        wanted.check(session)
        found = list(session.scalars(select(Face.id).where(*wanted.clauses(session)).order_by(Face.id)))
    assert found == [i for i in range(1, COUNT + 1) if kept(i)]


def test_confidence_counts(crowded: Catalog) -> None:
    for least, some in ((0.89, True), (0.91, False)):
        sure = AttributeFilter(name="expression", label="happiness", min_confidence=least)
        with crowded.read() as session:
            assert (session.scalar(select(Face.id).where(sure.clause(session)).limit(1)) is not None) is some


def test_only_faces_of_photos_that_are_there_are_visible(crowded: Catalog) -> None:
    with crowded.write() as session:
        session.get_one(Image, 9).status = "missing"
        session.get_one(Image, 10).content_id = 11
        session.flush()
        hidden = set(range(1, COUNT + 1)) - set(session.scalars(select(Face.id).where(visible())))
        session.rollback()
    assert hidden == {9, 10}


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"min_quality": 1.5}, "min_quality=1.5"),
        ({"min_quality": float("nan")}, "min_quality=nan"),
        ({"min_quality": "good"}, "min_quality='good'"),
        ({"min_quality": 0.5, "max_quality": 0.4}, "no quality from 0.5 to 0.4"),
        ({"taken_from": date(2020, 1, 2), "taken_until": date(2020, 1, 1)}, "no day from 2020-01-02 until 2020-01-01"),
        ({"taken_from": "2020-02-30"}, "taken_from='2020-02-30'"),
        ({"colour": "blue"}, "colour='blue'"),
        ({"attributes": [{"name": "age", "least": 30, "most": 20}]}, "age from 30.0 to 20.0 is empty"),
        ({"attributes": [{"name": "age", "least": float("inf")}]}, "attributes.0.least=inf"),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_name(conditions: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidFilter) as error:
        FaceFilter.of(**conditions)
    assert said in str(error.value)


@pytest.mark.parametrize("told", ["", "age", "=20", "age=", "age=..", "age=a..b", "age=30..20", "age=nan..1"])
def test_an_attribute_that_cannot_be_read_is_refused(told: str) -> None:
    with pytest.raises(InvalidFilter):
        AttributeFilter.parse(told)


def test_what_the_catalog_does_not_hold_is_named_with_what_it_holds(crowded: Catalog) -> None:
    with crowded.read() as session:
        with pytest.raises(UnknownCollection, match="there are: large, small"):
            FaceFilter(collections=("large", "medium")).check(session)
        with pytest.raises(InvalidFilter, match="no face has the attribute 'mood'; the catalog holds: expression"):
            FaceFilter(attributes=(AttributeFilter(name="mood"),)).check(session)
        with pytest.raises(InvalidFilter, match="no face has expression 'joy'; the catalog holds: happiness"):
            FaceFilter(attributes=(AttributeFilter.parse("expression=joy"),)).check(session)
        with pytest.raises(InvalidFilter, match="no person 77"):
            FaceFilter(identity_id=77).check(session)


def test_values_are_data_and_never_sql(crowded: Catalog) -> None:
    evil = "large'; DROP TABLE face; --"
    with crowded.read() as session:
        with pytest.raises(UnknownCollection):
            FaceFilter(collections=(evil,)).check(session)
        clauses = FaceFilter(collections=(evil,), attributes=(AttributeFilter(name=evil, label="%"),)).clauses(session)
        assert list(session.scalars(select(Face.id).where(*clauses))) == []
        assert session.scalar(select(Face.id).limit(1)) is not None
