"""Estimates of earlier releases keep their values and learn what they are."""

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from infra.catalog.database import MIGRATIONS, Catalog, create_catalog_engine
from tests.catalogs import ENGINES

BEFORE = """
INSERT INTO collection (id, name, uri, include, exclude, sensitive_attributes, created_at)
    VALUES (1, 'archive', '/photos', '[]', '[]', '[]', '2026-01-01');
INSERT INTO content (id, collection_id, sha256, status, recipe, owner_image_id, run_id, notes, failure_retryable)
    VALUES (1, 1, 'ab', 'done', 'r', 1, 1, '[]', false);
INSERT INTO model_version (id, name, version, role, contract, contract_content, weights_sha256, licence, serving, created_at)
    VALUES (1, 'm', 1, 'describe', 'c', '{}', '0', 'MIT', false, '2026-01-01');
INSERT INTO face (id, content_id, detector_id, ordinal, x1, y1, x2, y2, landmarks, score, quality, quality_parts, crop_key)
    VALUES (1, 1, 1, 0, 1, 2, 3, 4, '', 1, 1, '{}', 'k');
INSERT INTO attribute (face_id, model_version_id, name, value, label, confidence) VALUES
    (1, 1, 'expression', 3, 'happiness', 0.9), (1, 1, 'age', 41.5, NULL, NULL), (1, 1, 'age_morph2', 40, NULL, NULL),
    (1, 1, 'yaw', -12, NULL, NULL), (1, 1, 'smiling', 0.7, NULL, 0.7), (1, 1, 'age_group', 4, '40-49', 0.5)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_stored_estimates_keep_their_values_and_learn_their_units(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sqlite = engine == "sqlite"
    url = f"sqlite:///{tmp_path / 'old.db'}" if sqlite else request.getfixturevalue("postgresql").create()
    old = create_catalog_engine(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        for statement in BEFORE.split(";"):
            connection.execute(text(statement))
    old.dispose()
    catalog = Catalog(url)  # which migrates
    with catalog.read() as session:
        rows = session.execute(text("SELECT name, kind, unit, value, label, vector, mask_key FROM attribute")).tuples()
        found = {name: rest for name, *rest in rows}
    catalog.close()
    assert found == {
        "expression": ["category", "class", 3, "happiness", None, None],
        "age": ["years", "years", 41.5, None, None, None],
        "age_morph2": ["years", "years", 40, None, None, None],
        "yaw": ["degrees", "degrees", -12, None, None, None],
        "smiling": ["probability", "0..1", 0.7, None, None, None],
        "age_group": ["category", "class", 4, "40-49", None, None],
    }
