"""The index over encrypted embeddings in PostgreSQL: in memory only, as a disposable projection of the rows.

PostgreSQL's own index would hold the vectors open, and there is no journal as in SQLite. Which rows an index was built from is
told by their number and the sum of their `xmin`, the transactions that wrote them, which reads no vector: a row that is
changed, or put in the place of another, is written by a later transaction. Only of transactions that overlap could such
changes cancel out, number for number.
"""

import threading
from collections import OrderedDict

from sqlalchemy import BigInteger, Text, cast, func, literal_column, select
from sqlalchemy.orm import Session

from infra.catalog.search.projection import Projection, build
from infra.catalog.tables.schema import Embedding, ModelVersion

KEPT_OPEN = 4

_State = tuple[int, int]
_open: OrderedDict[tuple[str, int], tuple[_State, Projection]] = OrderedDict()
_opening = threading.Lock()


def open_sealed(session: Session, version: ModelVersion) -> Projection:
    """The index of a version, as the session sees its rows: from memory, or built."""
    key = session.get_bind().engine.url.render_as_string(), version.id
    with _opening:
        now = _state(session, version.id)
        state, found = _open.get(key, (None, None))
        if found is None or state != now or found.note.contract != version.contract:
            found = build(session, version)
        _open[key] = now, found
        _open.move_to_end(key)
        while len(_open) > KEPT_OPEN:
            _open.popitem(last=False)
        return found


def _state(session: Session, version_id: int) -> _State:
    written_by = cast(cast(literal_column("xmin"), Text), BigInteger)
    statement = select(func.count(), func.coalesce(func.sum(written_by), 0))
    count, written = session.execute(statement.where(Embedding.model_version_id == version_id)).one()
    return int(count), int(written)
