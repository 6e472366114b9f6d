"""Which faces may be seen: what has vanished from its collection is kept, and not found."""

from sqlalchemy import ColumnElement, exists

from infra.catalog.tables.schema import Face, Image, ImageStatus


def visible() -> ColumnElement[bool]:
    """A face that some photo still in its collection shows."""
    return _VISIBLE


_VISIBLE = exists().where(Image.content_id == Face.content_id, Image.status != ImageStatus.MISSING.value)
