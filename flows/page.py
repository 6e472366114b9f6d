"""A page of a collection that needs no server: photographs with their faces, before and after, people, failures."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from infra.catalog import collections
from infra.catalog.custody import exhibits
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.catalog.tables.schema import Collection
from infra.catalog.work import nights
from infra.html import templates
from infra.settings import Settings, load_settings
from infra.storage import Store, StoreError, open_store
from tasks.decode import DecodeFailure, decode

TEMPLATES = Path(__file__).parent / "templates"
WALL_HEIGHT = 240  # px
MAX_FACES = 200  # a page for looking, not for a million faces
MAX_CROP_BYTES = 20 * 2**20


def write_page(collection_name: str, folder: Path) -> Path:
    """Write `index.html` for a collection, with all pictures inside, and return its path.

    Raises:
        UnknownCollection: if there is none of that name.
    """
    settings, page = load_settings(), folder / "index.html"
    with closing(Catalog(settings.catalog_url)) as catalog:
        while not _written(catalog, settings, collection_name, page):
            pass  # somebody was erased meanwhile who may be on it
    return page


def _written(catalog: Catalog, settings: Settings, collection_name: str, page: Path) -> bool:
    """Write the page, unless an erasure that concerns it comes while it is made."""
    with catalog.write() as session:
        collection = collections.by_name(session, collection_name)
        noted = exhibits.note(session, settings, "page", page, collection.id)
    with exhibits.written(catalog, noted):
        html = _html(catalog, settings, collection, noted.mark)
        page.parent.mkdir(parents=True, exist_ok=True)
        with catalog.write() as session:
            if stands := exhibits.stands(session, noted):
                page.write_text(html, encoding="utf-8")
    return stands


def _html(catalog: Catalog, settings: Settings, collection: Collection, mark: str) -> str:
    with catalog.read() as session:
        found = views.faces(session, collection.name, None, 0.0, MAX_FACES + 1)
        failures = views.failures(session, collection.name, None, 100)
        latest = nights.runs(session, 10, collection.name)
    crops = open_store(settings.crops_uri, settings.storage_options)
    faces = [_face(crops, view) for view in found[:MAX_FACES]]
    template = templates(TEMPLATES).get_template("page.html")
    return template.render(
        collection=collection.name,
        mark=mark,
        photos=_wall(open_store(collection.uri, settings.storage_options), found[:MAX_FACES], settings),
        faces=faces,
        people=_people(faces),
        failures=failures,
        runs=latest,
        truncated=len(found) > MAX_FACES,
    )


def _face(crops: Store, view: views.FaceView) -> dict[str, Any]:
    restoration = view.restoration
    return {
        "view": view,
        "before": _picture(crops, view.crop_key),
        "after": _picture(crops, restoration.crop_key) if restoration is not None and restoration.accepted else None,
    }


def _picture(store: Store, key: str) -> str:
    kind = "png" if key.endswith(".png") else "jpeg"
    return _data_url(store.read(key, MAX_CROP_BYTES).data, kind)


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _people(faces: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The faces of everyone who has several on this page, whoever has most first."""
    together: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for face in faces:
        if face["view"].identity_id is not None:
            together[face["view"].identity_id].append(face)
    return sorted((of_one for of_one in together.values() if len(of_one) > 1), key=len, reverse=True)


def _wall(photographs: Store, faces: Sequence[views.FaceView], settings: Settings) -> list[dict[str, Any]]:
    """Every photo with a face, small, with the faces outlined; without a picture where the photo cannot be read now."""
    together: dict[tuple[str, ...], list[views.FaceView]] = defaultdict(list)
    for face in faces:
        together[face.keys].append(face)
    return [
        {"key": keys[0], "also": keys[1:], "faces": found, "picture": _outlined(photographs, keys, found, settings)}
        for keys, found in sorted(together.items())
        if keys
    ]


def _outlined(
    photographs: Store, keys: Sequence[str], faces: Sequence[views.FaceView], settings: Settings
) -> str | None:
    for key in keys:  # the same bytes, as long as they are there
        try:
            photo = decode(photographs.read(key, settings.max_bytes).data, long_side=1280)
        except (StoreError, DecodeFailure, MemoryError):
            continue
        picture = Image.fromarray(photo.pixels)
        draw = ImageDraw.Draw(picture)
        for face in faces:
            box = [(v + 0.5) / photo.scale - 0.5 for v in face.box]
            draw.rectangle(box, outline=(255, 190, 0), width=max(picture.height // 120, 2))
        picture.thumbnail((10_000, WALL_HEIGHT))
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=85)
        return _data_url(file.getvalue(), "jpeg")
    return None
