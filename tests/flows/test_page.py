"""The page of a collection: everything in one file, nothing hidden, and nothing in a name that acts as HTML."""

import base64
import io
import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from flows.page import write_page
from infra.catalog import collections
from infra.catalog.collections import UnknownCollection
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.catalog.tables.schema import Run, RunStatus
from infra.settings import PREFIX, Settings


class Elements(HTMLParser):
    """The tags, pictures and text of a page, as a browser understands it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self, words: str) -> list[PillowImage.Image]:
        """The decoded pictures whose alternative text contains `words`."""
        found = [image["src"] or "" for image in self.images if words in (image["alt"] or "")]
        return [PillowImage.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in found]


def page(folder: Path, collection: str = "archive") -> Elements:
    return Elements(write_page(collection, folder).read_text(encoding="utf-8"))


@pytest.fixture
def own_copy(archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The processed archive again, to be changed."""
    shutil.copytree(archive.home, tmp_path / "home")
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path / "home"))
    return archive.model_copy(update={"home": tmp_path / "home"})


def test_every_photo_with_a_face_is_shown_with_its_copies(archive: Settings, tmp_path: Path) -> None:
    shown = page(tmp_path)
    assert [picture.height for picture in shown.pictures("outlined faces")] == [240, 200, 240]  # none is enlarged
    assert "same bytes: z_copy_of_a.jpg" in shown.text
    assert len(shown.pictures("c/pair.jpg with 2 outlined faces")) == 1


def test_faces_are_outlined_where_they_are(archive: Settings, tmp_path: Path) -> None:
    (picture,) = page(tmp_path).pictures("a.jpg with 1 outlined")
    with Catalog(archive.catalog_url).read() as session:
        x1, y1, x2, y2 = (v * 240 / 384 for v in views.faces(session, "archive", None, 0, 1)[0].box)
    red, green, blue = np.moveaxis(np.asarray(picture, np.float32), 2, 0)
    yellow = (red + green) / 2 - blue
    columns, rows = yellow[round(y1) : round(y2)].mean(axis=0), yellow[:, round(x1) : round(x2)].mean(axis=1)
    assert columns[:120].argmax() == pytest.approx(x1, abs=2)
    assert columns[120:].argmax() + 120 == pytest.approx(x2, abs=2)
    assert rows[:60].argmax() == pytest.approx(y1, abs=2)


def test_a_restored_face_stands_beside_the_photographed_one_and_is_marked(archive: Settings, tmp_path: Path) -> None:
    html = write_page("archive", tmp_path).read_text(encoding="utf-8")
    shown = Elements(html)
    assert len(shown.pictures("as photographed")) == 4
    (restored,) = shown.pictures("restored")
    assert restored.format == "PNG"
    assert "Synthetic detail" in str(restored.info["Description"])
    assert len(re.findall(r'<div class="mark"><img [^>]*alt="face \d+ restored">', html)) == 1
    assert 'content: "synthetic detail"' in html  # drawn over whatever has the class `mark`
    assert re.search(r"identity similarity 0\.\d\d", shown.text)
    assert re.search(r"fidelity \d\d\.\d dB", shown.text)


def test_a_key_that_looks_like_html_is_text(archive: Settings, tmp_path: Path) -> None:
    shown = page(tmp_path)
    assert "<script>alert(1).jpg" in shown.text
    assert "script" not in shown.tags


def test_failures_people_and_nights_are_listed(archive: Settings, tmp_path: Path) -> None:
    shown = page(tmp_path)
    assert shown.text.count("decode: truncated") == 2
    assert re.search(r"Person \d+: \d faces", shown.text)
    assert "done_with_failures" in shown.text


def test_the_page_needs_nothing_from_outside(archive: Settings, tmp_path: Path) -> None:
    html = write_page("archive", tmp_path).read_text(encoding="utf-8")
    assert all((image["src"] or "").startswith("data:image/") for image in Elements(html).images)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_photo_that_cannot_be_read_any_more_leaves_the_rest_of_the_page(own_copy: Settings, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "b.jpg").write_bytes(b"no picture any more")
    catalog = Catalog(own_copy.catalog_url)
    with catalog.write() as session:
        collections.by_name(session, "archive").uri = str(photos)
    catalog.close()
    shown = page(tmp_path / "page")
    assert shown.text.count("This photograph cannot be read now.") == 3
    assert len(shown.pictures("as photographed")) == 4  # the crops are ours


def test_a_copy_stands_in_for_a_photo_that_was_removed(own_copy: Settings, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    catalog = Catalog(own_copy.catalog_url)
    with catalog.write() as session:
        collection = collections.by_name(session, "archive")
        shutil.copyfile(Path(collection.uri) / "z_copy_of_a.jpg", photos / "z_copy_of_a.jpg")
        collection.uri = str(photos)
    catalog.close()
    assert len(page(tmp_path / "page").pictures("a.jpg with 1 outlined")) == 1


def test_crashed_runs_and_other_collections_do_not_disturb(own_copy: Settings, tmp_path: Path) -> None:
    catalog = Catalog(own_copy.catalog_url)
    with catalog.write() as session:
        archive = collections.by_name(session, "archive")
        other = collections.add(session, "other", str(tmp_path), [], [], [])
        at = {"recipe": "", "host": "here", "process_id": 1, "process_started": 0.0, "started_at": datetime.now(UTC)}
        crash = {
            "status": RunStatus.CRASHED.value,
            "counts": {},
            "error": "its process 1 on here ended without closing it",
        }
        session.add(Run(collection_id=archive.id, **crash, **at))
        session.add(Run(collection_id=other.id, status=RunStatus.RUNNING.value, counts={}, **at))
    catalog.close()
    shown = page(tmp_path / "page")
    assert "crashed: its process 1 on here ended" in shown.text
    assert "running" not in shown.text
    empty = page(tmp_path / "other", "other")
    assert "No two faces were grouped as one person." in empty.text
    assert "running" in empty.text
    assert empty.images == []


def test_a_collection_that_is_not_there_is_named(archive: Settings, tmp_path: Path) -> None:
    with pytest.raises(UnknownCollection, match="'albums'"):
        write_page("albums", tmp_path / "page")
    assert not (tmp_path / "page").exists()
