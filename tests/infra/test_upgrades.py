"""Upgrades in the catalog, on both engines: in which order faces are embedded, what is passed over, what a switch relabels."""

import numpy as np
from sqlalchemy import delete, select, update

from infra.catalog.database import Catalog
from infra.catalog.search.vectors import count_vectors, put_embeddings
from infra.catalog.tables.schema import Content, Embedding, Face, FaceIdentity, Identity, Image, ModelVersion, now
from infra.catalog.tables.upgrades import Upgrade
from infra.catalog.versioning import upgrades, versions
from tests.infra.test_catalog import a_collection, a_run, model_versions, process_all

OTHER = np.array([0, 0, 1], np.float32)


def an_upgrade(catalog: Catalog, former_id: int) -> Upgrade:
    """Enter a version of 3 numbers, and the way to it."""
    with catalog.write() as session:
        target = ModelVersion(
            name="other",
            version=1,
            role="embed",
            contract="contract-other",
            contract_content={},
            weights_sha256="1",
            dimension=3,
            licence="CC0",
        )
        session.add(target)
        session.flush()
        upgrade = Upgrade(
            target_id=target.id,
            former_id=former_id,
            asked="contract-embed",
            status="backfilling",
            verdict="no worse",
            reason="",
            source="crops",
        )
        session.add(upgrade)
        session.flush()
        return upgrade


def processed(catalog: Catalog, *keys: str) -> tuple[int, Upgrade]:
    collection_id, contract = a_collection(catalog, *keys), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract, faces=1)
    with catalog.write() as session:
        versions.serve_when_complete(session, contract.embedder_id)
    return collection_id, an_upgrade(catalog, contract.embedder_id)


def test_named_people_come_first_then_frequent_ones_then_strangers_then_what_is_gone(catalog: Catalog) -> None:
    _, upgrade = processed(catalog, *"abcdefg")
    with catalog.write() as session:
        faces = list(session.scalars(select(Face).order_by(Face.id)))
        people = {"named": (faces[6],), "frequent": faces[3:6], "known": faces[1:3]}
        for number, (name, members) in enumerate(people.items(), start=1):
            session.add(Identity(id=number, model_version_id=upgrade.former_id, name=name if name == "named" else None))
            session.flush()
            session.add_all(
                FaceIdentity(face_id=f.id, model_version_id=upgrade.former_id, identity_id=number, run_id=1)
                for f in members
            )
        gone = faces[3].content_id
        session.execute(update(Image).where(Image.content_id == gone).values(status="missing"))
    with catalog.read() as session:
        order = upgrades.contents_to_embed(session, upgrade).tolist()
    wanted = [faces[6], faces[4], faces[5], faces[1], faces[2], faces[0], faces[3]]
    assert order == [face.content_id for face in wanted]


def test_a_face_that_was_erased_or_has_expired_meanwhile_gets_no_embedding(catalog: Catalog) -> None:
    _, upgrade = processed(catalog, "a", "b", "c")
    with catalog.write() as session:
        erased, expired, kept = session.scalars(select(Face.id).order_by(Face.id))
        session.execute(delete(Face).where(Face.id == erased))
        session.execute(update(Face).where(Face.id == expired).values(embeddings_expired_at=now()))
        made = dict.fromkeys((erased, expired, kept), OTHER)
        upgrades.put_backfilled(session, upgrade, made, {}, 1.0)
        assert list(
            session.scalars(select(Embedding.face_id).where(Embedding.model_version_id == upgrade.target_id))
        ) == [kept]
        assert upgrades.count_lacking(session, upgrade.target_id) == 0


def test_a_photo_whose_face_could_not_be_embedded_is_left_to_the_next_night(catalog: Catalog) -> None:
    collection_id, upgrade = processed(catalog, "a", "b")
    with catalog.write() as session:
        first, second = session.scalars(select(Face).order_by(Face.id))
        upgrades.put_backfilled(session, upgrade, {first.id: OTHER}, {second.id: "no photograph"}, 1.0)
        assert upgrades.count_lacking(session, upgrade.target_id, upgrade.id) == 0
        assert upgrades.count_given_up(session, upgrade.id) == 1
        upgrades.relabel(session, collection_id, "recipe", "new", upgrade.target_id)
    with catalog.read() as session:
        contents = dict(session.execute(select(Content.id, Content.recipe)).tuples().all())
        assert contents == {first.content_id: "new", second.content_id: "recipe"}
        images = dict(session.execute(select(Image.content_id, Image.recipe)).tuples().all())
        assert images == contents


def test_deleting_a_version_leaves_nothing_of_it_and_all_of_the_other(catalog: Catalog) -> None:
    _, upgrade = processed(catalog, "a", "b")
    with catalog.write() as session:
        faces = list(session.scalars(select(Face.id)))
        put_embeddings(session, upgrade.target_id, dict.fromkeys(faces, OTHER))
        assert upgrades.faces_with_both(session, upgrade, 10).tolist() == sorted(faces)
        session.add(Identity(id=9, model_version_id=upgrade.target_id))
        session.flush()
        session.add(FaceIdentity(face_id=faces[0], model_version_id=upgrade.target_id, identity_id=9, run_id=1))
    with catalog.write() as session:
        counts = upgrades.delete_version(session, upgrade.target_id)
        assert (counts["embedding"], counts["identity"], counts["face_identity"]) == (2, 1, 1)
        assert count_vectors(session, upgrade.target_id) == 0
        assert count_vectors(session, upgrade.former_id) == 2
