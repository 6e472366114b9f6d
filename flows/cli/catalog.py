"""`visage faces`, `identities`: questions to the catalog."""

from typing import Annotated

import typer

from flows.cli.output import Json, print_json, print_table
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.settings import load_settings
from infra.words import count

Limit = Annotated[int, typer.Option(min=1, help="Maximum number of rows.")]


def faces(
    collection: Annotated[str | None, typer.Option(help="Only of this collection.")] = None,
    identity: Annotated[int | None, typer.Option("--person", "--identity", help="Only of this person.")] = None,
    min_quality: Annotated[float, typer.Option(min=0, max=1, help="Only of at least this quality.")] = 0.0,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List faces with their quality, estimates and person."""
    with Catalog(load_settings().catalog_url).read() as session:
        if collection is not None:
            collections.by_name(session, collection)
        rows = views.faces(session, collection, identity, min_quality, limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Faces (attributes are estimates, not facts)",
        ["face", "photo", "box", "score", "quality", "person", "estimates", "restored"],
        [
            [
                row.face_id,
                ", ".join(row.keys),
                ",".join(str(round(v)) for v in row.box),
                row.score,
                row.quality,
                row.identity_name or row.identity_id,
                ", ".join(estimate_text(a) for a in row.attributes if not a.model.startswith("measured@")),
                "-" if row.restoration is None else "yes (synthetic)" if row.restoration.accepted else "rejected",
            ]
            for row in rows
        ],
    )


def estimate_text(attribute: views.AttributeView) -> str:
    value = attribute.label
    if attribute.value is None:
        value = "mask" if attribute.mask_key else count(len(attribute.vector or ()), "number")
    elif value is None:
        value = (
            f"{attribute.value:.2f}" if attribute.unit == "0..1" else f"{attribute.value:.0f} {attribute.unit}".strip()
        )
    confidence = "" if attribute.confidence is None else f" ({attribute.confidence:.0%})"
    return f"{attribute.name} {value}{confidence}"


def identities(
    min_faces: Annotated[int, typer.Option(min=1, help="Only people with at least this many faces.")] = 2,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the people that the catalog believes to know."""
    with Catalog(load_settings().catalog_url).read() as session:
        rows = views.identities(session, min_faces, limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        "People",
        ["person", "name", "faces", "photos", "where"],
        [[row.identity_id, row.name, row.faces, row.photos, ", ".join(row.keys)] for row in rows],
    )
