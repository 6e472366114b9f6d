"""What of a catalog belongs to a collection and can live in another one: which tables, which rows, and what their numbers mean.

People span collections. Of a person, what concerns faces of the collection travels: their identities, what was decided about
them, and whom those decisions name. Schedules, upgrades, tokens, the audit log and certificates belong to a catalog, and stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, exists, not_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from infra.catalog.chunks import chunks
from infra.catalog.exchange.copying import pages
from infra.catalog.sides import by_rows, unindexed
from infra.catalog.tables.people import DecidedMove, Decision, Person, Statement
from infra.catalog.tables.schema import (
    Attribute,
    Base,
    Collection,
    Content,
    Embedding,
    Face,
    FaceIdentity,
    Failure,
    Identity,
    Image,
    MergeProposal,
    ModelVersion,
    Restoration,
    Run,
)


@dataclass(frozen=True)
class Carried:
    """A table whose rows travel. `refers`: columns that hold the number of a row, and of which table.

    `alone`: columns that mean something in their own catalog only, and stay behind.
    """

    entity: type[Base]
    refers: dict[str, str] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()

    @property
    def table(self) -> Table:
        table = self.entity.__table__
        assert isinstance(table, Table)
        return table

    @property
    def name(self) -> str:
        return self.entity.__tablename__


def _by_face(**more: str) -> dict[str, str]:
    return {"face_id": "face", "model_version_id": "model_version", **more}


CARRIED = (  # each after those that it refers to, but for runs and images, whose numbers are only remembered
    Carried(Collection, alone=frozenset({"removed_at"})),
    Carried(ModelVersion, alone=frozenset({"serving"})),
    Carried(Run, {"collection_id": "collection"}, frozenset({"schedule_id", "slot", "tracking_run_id"})),
    Carried(Content, {"collection_id": "collection", "owner_image_id": "image", "run_id": "run"}),
    Carried(
        Image,
        {"collection_id": "collection", "content_id": "content", "former_content_id": "content", "run_id": "run"},
    ),
    Carried(Face, {"content_id": "content", "detector_id": "model_version"}),
    Carried(Embedding, _by_face(restorer_id="model_version")),
    Carried(Restoration, _by_face()),
    Carried(Attribute, _by_face()),
    Carried(Failure, {"run_id": "run", "collection_id": "collection", "image_id": "image"}),
    Carried(Person, {"root_id": "person", "merged_into_id": "person"}),
    Carried(Identity, {"model_version_id": "model_version", "person_id": "person"}),
    Carried(FaceIdentity, _by_face(identity_id="identity", run_id="run")),
    Carried(
        MergeProposal,
        {
            **{f"identity_{side}_id": "identity" for side in "ab"},
            **{f"face_{side}_id": "face" for side in "ab"},
            "run_id": "run",
        },
    ),
    Carried(Decision, {"person_id": "person", "other_id": "person", "ended_by_id": "decision"}),
    Carried(
        Statement,
        {"decision_id": "decision", "face_id": "face", "person_id": "person", "ended_by_id": "decision"},
    ),
    Carried(DecidedMove, _by_face(decision_id="decision", former_identity_id="identity")),
)
STAYS = frozenset(  # what belongs to a catalog, not to a collection in it
    {
        "access_token", "audit_entry", "backfill_claim", "backfill_failure", "embedding_change", "erasure", "exhibit",
        "holding", "home", "idempotency_key", "job", "outbox", "page_session", "schedule", "secret", "shrunk_identity", "split",
        "suppression", "ungrouped_face", "upgrade",
    }
)  # fmt: skip


def _faces_of(session: Session, collection_id: int) -> ColumnElement[bool]:
    contents = select(Content.id).where(Content.collection_id == collection_id)
    each = exists().where(Content.id == Face.content_id, Content.collection_id == collection_id)
    return by_rows(session, Face.content_id, contents, each)


class Selection:
    """The rows that belong to a collection. What is decided about people is gathered first: it is little."""

    def __init__(self, session: Session, collection_id: int) -> None:
        self.session = session
        mine = _faces_of(session, collection_id)
        self.faces = select(Face.id).where(mine)
        self.persons, self.decisions = self._people()
        shown = exists().where(FaceIdentity.identity_id == Identity.id, self._among(FaceIdentity.face_id))
        empty = not_(exists().where(FaceIdentity.identity_id == Identity.id))
        emptied = [and_(Identity.person_id.in_(part), empty) for part in chunks(self.persons)]
        self._identities = or_(shown, *emptied)
        self._where: dict[str, ColumnElement[bool]] = {
            "collection": Collection.id == collection_id,
            "run": Run.collection_id == collection_id,
            "content": unindexed(session, Content.collection_id) == collection_id,
            "image": unindexed(session, Image.collection_id) == collection_id,
            "face": mine,
            "failure": Failure.collection_id == collection_id,
            "identity": self._identities,
            "merge_proposal": self._among(MergeProposal.face_a_id) & self._among(MergeProposal.face_b_id),
        }

    def rows(self, carried: Carried) -> Iterator[list[dict[str, Any]]]:
        """The rows of one table, in the order of their keys, in pages; without what stays behind."""
        for condition in self._conditions(carried.name):
            for page in pages(self.session.connection(), carried.table, None, condition):
                rows = self._bounded(page) if carried.entity is Decision else page
                yield [{name: value for name, value in row.items() if name not in carried.alone} for row in rows]

    def _conditions(self, table: str) -> Sequence[ColumnElement[bool]]:
        if table in self._where:
            return [self._where[table]]
        if table == "model_version":
            return [ModelVersion.id.in_(self._versions())]
        if table == "person":
            return [Person.id.in_(part) for part in chunks(self.persons)]
        if table == "decision":
            return [Decision.id.in_(part) for part in chunks(self.decisions)]
        entities = Embedding, Restoration, Attribute, FaceIdentity, Statement, DecidedMove
        by_face: dict[str, InstrumentedAttribute[int]] = {e.__tablename__: e.face_id for e in entities}
        return [self._among(by_face[table])]

    def _among(self, face: InstrumentedAttribute[int]) -> ColumnElement[bool]:
        return by_rows(self.session, face, self.faces, self.faces.where(Face.id == face).exists())

    def _versions(self) -> list[int]:
        found: set[int | None] = set(
            self.session.scalars(select(Face.detector_id).where(Face.id.in_(self.faces)).distinct())
        )
        for entity in (Embedding, Restoration, Attribute, FaceIdentity, DecidedMove):
            found.update(
                self.session.scalars(select(entity.model_version_id).where(entity.face_id.in_(self.faces)).distinct())
            )
        found.update(
            self.session.scalars(select(Embedding.restorer_id).where(Embedding.face_id.in_(self.faces)).distinct())
        )
        found.update(self.session.scalars(select(Identity.model_version_id).where(self._identities).distinct()))
        return sorted(version for version in found if version is not None)

    def _people(self) -> tuple[set[int], set[int]]:
        """Persons whom the collection shows or of whom a decision about its faces speaks, and the decisions about them."""
        session = self.session
        of_faces = select(FaceIdentity.identity_id).where(FaceIdentity.face_id.in_(self.faces))
        shown = select(Identity.person_id).where(Identity.id.in_(of_faces), Identity.person_id.is_not(None)).distinct()
        stated = select(Statement).where(Statement.face_id.in_(self.faces))
        persons = {person for person in session.scalars(shown) if person is not None}
        moved = select(DecidedMove.decision_id).where(DecidedMove.face_id.in_(self.faces))
        decisions = set(session.scalars(moved.distinct()))
        for person, decision, ended_by in session.execute(
            stated.with_only_columns(Statement.person_id, Statement.decision_id, Statement.ended_by_id)
        ).tuples():
            decisions.update(d for d in (decision, ended_by) if d is not None)
            persons.update([] if person is None else [person])
        while True:
            before = len(persons), len(decisions)
            for part in chunks(decisions):
                named = select(Decision.person_id, Decision.other_id, Decision.ended_by_id).where(Decision.id.in_(part))
                for person, other, ended_by in session.execute(named).tuples():
                    persons.update(p for p in (person, other) if p is not None)
                    decisions.update([] if ended_by is None else [ended_by])
            for part in chunks(persons):
                roots = select(Person.root_id).where(Person.id.in_(part))
                persons.update(session.scalars(select(Person.id).where(Person.root_id.in_(roots))))
            if (len(persons), len(decisions)) == before:
                break
        for part in chunks(persons):  # names, merges: of one person, or of two who both travel
            about = select(Decision.id, Decision.other_id).where(Decision.person_id.in_(part))
            decisions.update(d for d, other in session.execute(about).tuples() if other is None or other in persons)
        return persons, decisions

    def _bounded(self, page: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Decisions, ended by whichever of those that travel."""
        return [
            row | {"ended_by_id": row["ended_by_id"] if row["ended_by_id"] in self.decisions else row["id"]}
            if row["ended_by_id"] is not None
            else row
            for row in page
        ]
