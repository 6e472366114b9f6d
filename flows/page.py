"""A page of a collection that needs no server: photographs with their faces, before and after, people, failures."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw

from infra.catalog import collections, views
from infra.catalog.database import Catalog
from infra.settings import Settings, load_settings
from infra.storage import Store, open_store
from tasks.decode import decode

TEMPLATES = Path(__file__).parent / "templates"
WALL_HEIGHT = 240  # px
MAX_FACES = 200  # a page for looking, not for a million faces


def write_page(collection_name: str, folder: Path) -> Path:
    """Write `index.html` for a collection, with all pictures inside, and return its path."""
    settings = load_settings()
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        collection = collections.by_name(session, collection_name)
        faces = views.faces(session, collection_name, None, 0.0, MAX_FACES)
        people = views.identities(session, 2, 50)
        failures = views.failures(session, collection_name, None, 100)
        latest = views.runs(session, 10)
    catalog.close()
    crops = open_store(settings.crops_uri, settings.storage_options)
    photographs = open_store(collection.uri, settings.storage_options)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    html = environment.get_template("page.html").render(
        collection=collection_name,
        photos=_wall(photographs, faces, settings),
        faces=[_face(crops, face) for face in faces],
        people=[
            (person, [_picture(crops, f.crop_key) for f in faces if f.identity_id == person.identity_id])
            for person in people
        ],
        failures=failures,
        runs=latest,
        truncated=len(faces) == MAX_FACES,
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(html, encoding="utf-8")
    return page


def _face(crops: Store, face: views.FaceView) -> dict[str, Any]:
    restoration = face.restoration
    return {
        "view": face,
        "before": _picture(crops, face.crop_key),
        "after": None if restoration is None else _picture(crops, restoration.crop_key),
    }


def _picture(store: Store, key: str) -> str:
    """The object as a data URL."""
    kind = "png" if key.endswith(".png") else "jpeg"
    data = store.read(key, 20 * 2**20).data
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _wall(photographs: Store, faces: list[views.FaceView], settings: Settings) -> list[dict[str, Any]]:
    """Every photo with a face, small, with the faces outlined."""
    by_key: dict[str, list[views.FaceView]] = {}
    for face in faces:
        by_key.setdefault(face.keys[0], []).append(face)
    wall = []
    for key, found in sorted(by_key.items()):
        photo = decode(photographs.read(key, settings.max_bytes).data, long_side=1280)
        picture = Image.fromarray(photo.pixels)
        draw = ImageDraw.Draw(picture)
        for face in found:
            box = [(v + 0.5) / photo.scale for v in face.box]
            draw.rectangle(box, outline=(255, 190, 0), width=max(picture.height // 120, 2))
        picture.thumbnail((10_000, WALL_HEIGHT))
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=85)
        source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        wall.append({"key": key, "also": found[0].keys[1:], "picture": source, "faces": found})
    return wall
