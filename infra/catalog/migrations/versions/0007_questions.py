"""Perceptual hashes of pictures; views with stable names, for whoever reads the catalog with SQL."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

VIEWS = {
    "visage_photos": """
        SELECT image.id AS photo_id, collection.name AS collection, image.key AS key, image.size AS bytes,
            image.status AS status, image.modified_at AS modified_at, content.sha256 AS sha256,
            content.format AS format, content.width AS width,
            content.height AS height, content.taken_at AS taken_at
        FROM image JOIN collection ON collection.id = image.collection_id LEFT JOIN content ON content.id = image.content_id
    """,
    "visage_faces": """
        SELECT face.id AS face_id, image.id AS photo_id, collection.name AS collection, image.key AS key,
            face.x1 AS x1, face.y1 AS y1, face.x2 AS x2, face.y2 AS y2, face.score AS score, face.quality AS quality,
            face.found_at AS found_at, detector.name AS detector, detector.version AS detector_version
        FROM face JOIN content ON content.id = face.content_id JOIN image ON image.content_id = content.id
            JOIN collection ON collection.id = image.collection_id
            JOIN model_version AS detector ON detector.id = face.detector_id
        WHERE image.status <> 'missing'
    """,
    "visage_attributes": """
        SELECT attribute.face_id AS face_id, attribute.name AS name, attribute.kind AS kind, attribute.unit AS unit,
            attribute.value AS value, attribute.label AS label, attribute.confidence AS confidence,
            model_version.name AS model, model_version.version AS model_version
        FROM attribute JOIN model_version ON model_version.id = attribute.model_version_id
    """,
    "visage_people": """
        SELECT face_identity.face_id AS face_id, identity.id AS person_id, identity.name AS name,
            model_version.name AS model, model_version.version AS model_version
        FROM face_identity JOIN identity ON identity.id = face_identity.identity_id
            JOIN model_version ON model_version.id = identity.model_version_id
        WHERE model_version.serving
    """,
    "visage_runs": """
        SELECT run.id AS run_id, collection.name AS collection, run.status AS status, run.started_at AS started_at,
            run.finished_at AS finished_at, run.error AS error
        FROM run JOIN collection ON collection.id = run.collection_id
    """,
    "visage_failures": """
        SELECT failure.id AS failure_id, failure.run_id AS run_id, collection.name AS collection, failure.key AS key,
            failure.stage AS stage, failure.reason AS reason, failure.message AS message, failure.retryable AS retryable,
            failure.failed_at AS failed_at, failure.resolved_at AS resolved_at
        FROM failure JOIN collection ON collection.id = failure.collection_id
    """,
}


def upgrade() -> None:
    """Add the column, make the views."""
    op.add_column("content", sa.Column("perceptual_hash", sa.Text(), nullable=True))
    for name, query in VIEWS.items():
        op.execute(sa.text(f"CREATE VIEW {name} AS {query}"))
