"""A night on a GPU leaves what a night on the CPU leaves: `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import select

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Attribute, Content, Embedding, Face, Image, Restoration
from infra.settings import Settings
from tests.portraits import jpeg, mirrored, small_collection
from tests.runs import add, run

pytestmark = pytest.mark.gpu

DEGREES = ("pitch", "yaw", "roll")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs with and without faces, and one whose face is small enough to be restored."""
    folder = small_collection(tmp_path / "photos")
    (folder / "small.jpg").write_bytes(jpeg(mirrored(150)))
    return folder


def after_a_night(settings: Settings, photos: Path) -> dict[str, list[Any]]:
    """What a night leaves of every face, the faces of a photo from left to right, and of every restored one."""
    add(settings, photos)
    run(settings)
    of_face = select(Image.key, Face.x1, Face.y1, Face.x2, Face.y2, Face.quality).join(
        Content, Content.id == Image.content_id
    )
    faces = of_face.add_columns(Embedding.vector).join(Face, Face.content_id == Content.id).join(Embedding)
    attributes = (
        select(Image.key, Face.x1, Attribute.name, Attribute.value, Attribute.label)
        .join(Content, Content.id == Image.content_id)
        .join(Face, Face.content_id == Content.id)
        .join(Attribute)
    )
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        found = {
            "faces": sorted(session.execute(faces).tuples(), key=lambda row: row[:2]),
            "attributes": sorted(session.execute(attributes).tuples(), key=lambda row: (row[0], row[2], row[1])),
            "restored": list(session.execute(select(Restoration.fidelity).order_by(Restoration.fidelity)).scalars()),
        }
    catalog.close()
    return found


def test_a_night_on_a_gpu_leaves_what_one_on_the_cpu_leaves(
    photos: Path, tmp_path: Path, weights_dir: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(home: str) -> Settings:
        return Settings(
            home=tmp_path / home, weights=weights_dir, tracking_uri=tracking_uri, engine="inline", precision="float32"
        )

    torch.cuda.reset_peak_memory_stats()
    found = after_a_night(settings("gpu"), photos)
    assert torch.cuda.max_memory_allocated() > 100 * 2**20  # it did compute there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = after_a_night(settings("cpu"), photos)

    assert len(found["faces"]) == len(expected["faces"]) == 6
    for (key, *numbers, vector), (wanted_key, *wanted, wanted_vector) in zip(
        found["faces"], expected["faces"], strict=True
    ):
        assert key == wanted_key
        np.testing.assert_allclose(numbers[:4], wanted[:4], rtol=0, atol=1.0, err_msg=key)  # a pixel
        assert numbers[4] == pytest.approx(wanted[4], abs=0.02)  # quality
        assert float(np.dot(vector, wanted_vector)) > 0.999
    assert len(found["attributes"]) == len(expected["attributes"])
    for (key, _, name, value, label), (wanted_key, _, wanted_name, wanted, wanted_label) in zip(
        found["attributes"], expected["attributes"], strict=True
    ):
        assert (key, name, label) == (wanted_key, wanted_name, wanted_label)
        if label is None:
            assert value == pytest.approx(wanted, rel=0.02, abs=0.5 if name in DEGREES else 0.02), (key, name)
    assert found["restored"] == pytest.approx(expected["restored"], abs=0.5)  # dB
    assert found["restored"]
