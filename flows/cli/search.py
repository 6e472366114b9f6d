"""`visage search`: who looks like this?"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.custody import audit, places
from infra.catalog.database import Catalog
from infra.catalog.queries.filters import AttributeFilter, FaceFilter
from infra.settings import load_settings

if TYPE_CHECKING:
    from tasks.search import Answer

DAY = ["%Y-%m-%d"]


def search(
    photos: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="A photograph, or several of one person; they are not kept."),
    ] = None,
    number: Annotated[
        int | None, typer.Option(min=1, help="Only for this face of the photo, counted as this command shows them.")
    ] = None,
    face: Annotated[list[int] | None, typer.Option(help="A face of the catalog, or several of one person.")] = None,
    person: Annotated[
        int | None, typer.Option("--person", "--identity", help="A person of the catalog: who else looks like them?")
    ] = None,
    collection: Annotated[list[str] | None, typer.Option(help="Only faces of this collection, or of these.")] = None,
    taken_from: Annotated[
        datetime | None, typer.Option(formats=DAY, help="Only faces taken on this day or later.")
    ] = None,
    taken_until: Annotated[
        datetime | None, typer.Option(formats=DAY, help="Only faces taken on this day or earlier.")
    ] = None,
    min_quality: Annotated[float, typer.Option(min=0, max=1, help="Only faces of at least this quality.")] = 0.0,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Only faces with name=label or name=least..most, like yaw=-15..15.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 10,
    after: Annotated[str | None, typer.Option(help="Go on behind an earlier answer, from what it gave.")] = None,
    as_json: Json = False,
) -> None:
    """Find the faces of the catalog that look most like those in a photo, like faces of the catalog, or like a person."""
    conditions = FaceFilter.of(
        collections=collection or (),
        taken_from=taken_from.date() if taken_from else None,
        taken_until=taken_until.date() if taken_until else None,
        min_quality=min_quality,
        attributes=[AttributeFilter.parse(told) for told in attribute or ()],
    )
    if number is not None and len(photos or ()) != 1:
        raise typer.BadParameter("--number says which face of one photo is meant; name one photo")
    from tasks import search as tasks  # noqa: PLC0415 - imports torch

    settings = load_settings()
    catalog = Catalog(settings.catalog_url)
    places.index_here(catalog, settings)
    if photos and len(photos) == 1 and number is None and not face and person is None and after is None:
        with catalog.read() as session:
            answers = tasks.search_photo(session, settings, photos[0], limit, conditions)
    else:
        asked = tuple(tasks.read_photo(photo, settings, number) for photo in photos or ())
        query = tasks.Query(tuple(face or ()), asked, person, conditions, limit, after)
        answers = [tasks.search_faces(catalog, settings, query)]
    found = [match.face.face_id for answer in answers for match in answer.matches]
    with catalog.write() as session:
        asked_for = {"faces": face or [], "person": person, "limit": limit}
        audit.searched(session, settings.acting, "catalog", found, [p.read_bytes() for p in photos or ()], **asked_for)
    catalog.close()
    if as_json:
        print_json(answers)
        return
    for place, answer in enumerate(answers, start=1):
        _show(answer, place, len(answers))
    if any(match.probability is None for answer in answers for match in answer.matches):
        console.print("This model version is not calibrated: 'visage evaluate verification' gives it probabilities.")


def _show(answer: "Answer", number: int, of: int) -> None:
    x1, y1, x2, y2 = (round(v) for v in answer.box)
    asked = (
        f"Face {number} of {of} at ({x1}, {y1})-({x2}, {y2})" if answer.asked == 1 else f"Mean of {answer.asked} faces"
    )
    print_table(
        f"{asked}, compared by {answer.model} ({answer.method})",
        ["face", "photo", "collection", "similarity", "probability", "person"],
        [
            [
                match.face.face_id,
                ", ".join(match.face.keys),
                match.face.collection,
                match.similarity,
                match.probability,
                match.face.identity_name or match.face.identity_id,
            ]
            for match in answer.matches
        ],
    )
    if answer.after is not None:
        console.print(literal(f"There are more: --after {answer.after}" + (f" --number {number}" if of > 1 else "")))
    console.print()
