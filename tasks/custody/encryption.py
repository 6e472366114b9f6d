"""Switch the encryption of a catalog's embeddings on or off: all in one transaction; the old bytes are scrubbed."""

from infra.catalog import encryption
from infra.catalog.custody import audit, erasing, places
from infra.catalog.database import Catalog
from infra.catalog.encryption import EmbeddingsLocked
from infra.catalog.tables.custody import Errand, Keeps
from infra.catalog.tables.schema import Erasure
from infra.catalog.versioning import backfill_claims
from infra.catalog.work.runs import close_dead_runs
from infra.settings import Settings
from tasks.custody import errands


def switch(settings: Settings, who: str, on: bool) -> tuple[int, errands.Finished]:
    """Encrypt all embeddings with the environment's key, or decrypt them; returns how many, and what is left to scrub.

    Search indexes on disk go: where embeddings are encrypted, indexes live in memory only.

    Raises:
        EmbeddingsLocked: without a key, with another one, while a run or backfill is at work, or if there is nothing to switch.
    """
    key = encryption.read_key()
    if key is None:
        raise EmbeddingsLocked(
            f"set {encryption.VARIABLE} or {encryption.VARIABLE}_FILE first; 'visage encryption new-key'"
        )
    catalog = Catalog(settings.catalog_url, unlock=False)
    try:
        places.enter_what_is_there(catalog, settings)
        with catalog.write() as session:
            if alive := close_dead_runs(session):
                raise EmbeddingsLocked(
                    f"run {alive[0].id} is at work and writes embeddings; wait for it, or stop it first"
                )
            if backfill_claims.at_work(session):
                raise EmbeddingsLocked("a backfill is at work and writes embeddings; wait for it, or stop it first")
            count = (encryption.encrypt if on else encryption.decrypt)(session, key)
            kind = "encryption" if on else "decryption"
            erasure = Erasure(kind=kind, reason="embeddings are stored anew", who=who, counts={"embedding": count})
            session.add(erasure)
            session.flush()
            places.post(session, erasure.id, Errand.FILE, Keeps.CACHE, ["index"])
            erasing.post_scrub(session, erasure.id)
            audit.append(session, who, f"embeddings.{kind}", {"embeddings": count})
        return count, errands.finish(catalog, settings)
    finally:
        catalog.close()
