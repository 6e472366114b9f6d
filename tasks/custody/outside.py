"""Places outside of the catalog that are no more: forgotten, so that certificates need not wait for them."""

from infra.catalog.custody import audit, erasing, places
from infra.catalog.database import Catalog


def forget_place(catalog: Catalog, who: str, place_id: int) -> int:
    """Forget a place; returns how many files erasures will never remove there. Certificates count them as unreached.

    Raises:
        UnknownPlace: if there is none of that number.
    """
    with catalog.write() as session:
        undone = places.forget(session, place_id)
        erasing.close(session, ())
        audit.append(session, who, "place.forget", {"place": place_id, "unreached": undone})
    return undone
