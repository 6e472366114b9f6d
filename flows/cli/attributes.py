"""`visage opinions`: what several models say of one attribute, side by side."""

from typing import Annotated

import typer

from flows.cli.catalog import Limit, estimate_text
from flows.cli.output import Json, console, print_json, print_table
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.queries import opinions as question
from infra.settings import load_settings


def opinions(
    names: Annotated[
        list[str], typer.Argument(metavar="ATTRIBUTE...", help="expression, yaw, expression_affectnet ...")
    ],
    collection: Annotated[str | None, typer.Option(help="Only of this collection.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Compare what models say of an attribute: how far they agree, and the faces on which they differ most."""
    with Catalog(load_settings().catalog_url).read() as session:
        if collection is not None:
            collections.by_name(session, collection)
        found = question.opinions(session, names, collection, limit)
    if as_json:
        print_json(found)
        return
    print_table(
        f"Agreement on {', '.join(names)}",
        ["one", "other", "faces", "same class", "mean difference"],
        [
            [
                row.first,
                row.second,
                row.faces,
                row.same_class,
                None if row.mean_difference is None else f"{row.mean_difference:.2f} {row.unit}",
            ]
            for row in found.agreements
        ],
    )
    if not found.agreements:
        console.print("Only one model gives this: VISAGE_DESCRIBE_MODELS names those that describe.")
        return
    print_table(
        "Where they differ most (estimates, not facts)",
        ["face", "photo", "opinions"],
        [
            [row.face_id, ", ".join(row.keys), "; ".join(f"{o.model}: {estimate_text(o)}" for o in row.opinions)]
            for row in found.disagreements
        ],
    )
