"""What a night's grouping looks at: exactly what has no place yet, whoever wrote it, without passing over what is there."""

from typing import Any

from sqlalchemy import delete, event, not_, select
from sqlalchemy.sql import exists

from infra.catalog.custody.erasing import forget_faces
from infra.catalog.database import Catalog
from infra.catalog.identities.waiting import keep
from infra.catalog.tables.schema import Embedding, FaceIdentity, Identity, ShrunkIdentity, UngroupedFace
from infra.catalog.versioning.upgrades import count_ungrouped, delete_version
from tasks.identities import decisions
from tests.made_up import VERSIONS, Crowd

ADA, BOB, EVE = 1, 2, 3
BIG = ("face", "embedding", "face_identity", "identity", "content", "image", "merge_proposal")


def waiting(crowd: Crowd) -> set[tuple[int, int]]:
    """Faces noted as ungrouped, having seen that these are those without a place."""
    placed = exists().where(
        FaceIdentity.face_id == Embedding.face_id, FaceIdentity.model_version_id == Embedding.model_version_id
    )
    with crowd.catalog.read() as session:
        noted = set(session.execute(select(UngroupedFace.face_id, UngroupedFace.model_version_id)).tuples())
        homeless = select(Embedding.face_id, Embedding.model_version_id).where(not_(placed))
        assert noted == set(session.execute(homeless).tuples())
    return noted


def empty_identities(crowd: Crowd) -> list[Identity]:
    empty = not_(exists().where(FaceIdentity.identity_id == Identity.id))
    with crowd.catalog.read() as session:
        return list(session.scalars(select(Identity).where(empty)))


def test_a_face_waits_until_it_has_a_place_and_again_when_it_loses_it(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.4)
    first = VERSIONS[0], crowd.versions[VERSIONS[0]]
    photos = [crowd.photo(ADA, BOB) for _ in range(4)]
    assert len(waiting(crowd)) == 16  # under both versions
    crowd.night()
    assert {version for _, version in waiting(crowd)} == {crowd.versions[VERSIONS[1]]}
    with catalog.write() as session:
        decisions.reject(session, "curator", [photos[0][0]])
    assert (photos[0][0], first[1]) in waiting(crowd)
    crowd.night(VERSIONS[1])
    crowd.night()
    assert not waiting(crowd)
    with catalog.write() as session:
        session.execute(delete(FaceIdentity).where(FaceIdentity.face_id.in_(photos[1])))
    assert {face for face, _ in waiting(crowd)} == set(photos[1])
    with catalog.write() as session:
        session.execute(delete(Embedding).where(Embedding.face_id == photos[1][0]))
    assert {face for face, _ in waiting(crowd)} == {photos[1][1]}
    with catalog.write() as session:
        forget_faces(session, photos[1])
        delete_version(session, crowd.versions[VERSIONS[1]])
        assert count_ungrouped(session, first[1]) == 0
    assert not waiting(crowd)


def test_an_identity_goes_with_its_last_face_but_for_one_that_people_decided_about(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.4)
    photos = [crowd.photo(ADA, BOB, EVE) for _ in range(3)]
    crowd.night()
    places = crowd.places()
    ada, bob = places[photos[0][0]], places[photos[0][1]]
    assert ada is not None
    with catalog.write() as session:
        decisions.name(session, "curator", ada, "Ada")
        gone = [photo[person] for photo in photos for person in (0, 1)]
        session.execute(delete(Embedding).where(Embedding.face_id.in_(gone)))
        session.execute(delete(FaceIdentity).where(FaceIdentity.face_id.in_(gone)))
    assert {identity.id for identity in empty_identities(crowd)} == {ada, bob}
    for _ in range(2):
        crowd.night()
        assert {identity.id for identity in empty_identities(crowd)} == {ada}
    with catalog.read() as session:
        assert set(session.scalars(select(ShrunkIdentity.identity_id))) == {ada}


def test_what_waited_before_the_database_kept_note_is_found(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.4)
    crowd.photo(ADA, BOB)
    with catalog.write() as session:
        session.execute(delete(UngroupedFace))
        session.add(Identity(id=7, model_version_id=crowd.versions[VERSIONS[0]]))
    with catalog.engine.begin() as connection:
        keep(connection)
    assert len(waiting(crowd)) == 4
    crowd.night()
    assert empty_identities(crowd) == []


def test_grouping_new_faces_passes_over_no_table_that_grows_with_the_catalog(fresh_catalog_url: Any) -> None:
    crowd = Crowd(Catalog(fresh_catalog_url("sqlite")), spread=0.5)
    for _ in range(3):
        for person in range(6):
            crowd.photo(person, person + 6)
        crowd.night()
    crowd.photo(*range(8))
    asked: list[tuple[str, Any]] = []

    @event.listens_for(crowd.catalog.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            asked.append((statement, parameters[0] if many else parameters))

    assert crowd.night().grouped == 8
    event.remove(crowd.catalog.engine, "before_cursor_execute", note)
    with crowd.catalog.engine.connect() as connection:
        steps = [
            (row[3], statement)
            for statement, parameters in asked
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    assert any("ix_face_identity_exemplar" in step for step, _ in steps)
    scans = [(step, statement) for step, statement in steps if step.startswith("SCAN") and step.split()[1] in BIG]
    # Open proposals are questions to people: all of them are looked at, whether they still hold.
    assert {step.split()[1] for step, _ in scans} == {"merge_proposal"}
    assert all("merge_proposal" in statement for _, statement in scans)
    crowd.catalog.close()
