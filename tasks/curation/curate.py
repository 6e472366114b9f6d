"""Curate pictures or a collection into a new folder: read labels, look at faces, compare, and write what is proposed."""

from pathlib import Path

from infra.catalog import collections
from infra.catalog.custody import audit, exhibits
from infra.catalog.database import Catalog
from infra.settings import Settings
from models.spec import Role
from tasks.curation.labelled import study_collection, study_pictures
from tasks.curation.report import Curated, curate_studied, write
from tasks.recipe import version_for
from tasks.training.collection import Progress, read_collection, read_identities


class FolderThere(ValueError):
    """The folder for the report is there already."""


def curate_pictures(
    settings: Settings,
    images: Path,
    labels: Path | None,
    model: str | None,
    out: Path,
    on_progress: Progress = lambda done, total: None,
) -> tuple[Curated, tuple[Path, ...]]:
    """Curate a folder with a folder for each identity, or a folder or tar file with a CSV (image, identity).

    Returns what is proposed, and the files in the new folder `out`: page, JSON, proposals, cleaned list.

    Raises:
        FolderThere: nothing is written over.
        UnusableLabels, ImagesMissing: if it is not clear who is on which picture.
        UnknownModel, NotInstalled, WrongRole: if the model cannot compare faces.
    """
    _check(out)
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    embedder = version_for(Role.EMBED, model or settings.embed_model, settings)
    labelled = read_collection(images, labels)
    curated = curate_studied(study_pictures(settings, detector, embedder, labelled, on_progress))
    out.mkdir(parents=True)
    return curated, write(curated, out)


def curate_collection(
    catalog: Catalog,
    settings: Settings,
    name: str,
    labels: Path,
    out: Path,
    who: str,
    on_progress: Progress = lambda done, total: None,
) -> tuple[Curated, tuple[Path, ...]]:
    """Curate a collection by the vectors in the catalog; labels name photographs by their keys. An erasure removes the folder.

    Raises:
        FolderThere: nothing is written over.
        UnknownCollection, UnusableLabels: if it is not clear who is on which photograph.
    """
    _check(out)
    identities = read_identities(labels)
    with catalog.write() as session:
        collection = collections.by_name(session, name)
        folder = exhibits.make_folder(session, settings, "curation", out, collection.id)
        audit.append(session, who, "curate", {"collection": collection.id})
    with exhibits.whole(catalog, folder):
        with catalog.read() as session:
            curated = curate_studied(study_collection(session, settings, name, identities))
        on_progress(len(curated.labels), len(curated.labels))
        return curated, write(curated, out)


def _check(out: Path) -> None:
    if out.exists():
        raise FolderThere(f"{out} is there already; name a new folder")
