"""`visage erase`, `erasures`, `retention`: forgetting, at once or when the time has come."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.catalog.database import Catalog
from infra.settings import Settings, load_settings
from infra.words import count

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tasks.custody.erase import Plan
    from tasks.custody.errands import Finished

SHOWN = 20  # keys and faces listed in a preview


def erase(
    face: Annotated[list[int] | None, typer.Option(help="A face; may be given several times.")] = None,
    identity: Annotated[int | None, typer.Option("--person", "--identity", help="A person, with all faces.")] = None,
    image: Annotated[str | None, typer.Option(help="A photograph, by its key in the collection.")] = None,
    collection: Annotated[str | None, typer.Option(help="The collection of --image, if several have that key.")] = None,
    photo: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Whoever this picture shows; it is not kept.")
    ] = None,
    least_similarity: Annotated[
        float | None, typer.Option(min=-1, max=1, help="With --photo: which faces are meant; default: calibrated.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the certificate. No names.")] = "requested",
    yes: Annotated[bool, typer.Option("--yes", help="Erase without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Show what the catalog knows of a face, a person or a photograph, and erase it everywhere. It does not come back."""
    if sum(bool(way) for way in (face, identity is not None, image, photo)) != 1:
        raise typer.BadParameter("say what to erase with exactly one of --face, --identity, --image, --photo")
    from tasks.custody import erase as erasing  # noqa: PLC0415 - a second of imports

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        with catalog.read() as session:
            plan = _plan(session, settings, face, identity, image, collection, photo, least_similarity)
        if not yes:
            _preview(plan, as_json)
            if as_json or not typer.confirm("Erase all this? It cannot be undone", err=True):
                errors.print("nothing was erased" + (" ('--yes' does it)" if as_json else ""))
                return
        certificate, finished = erasing.erase(catalog, settings, settings.acting, plan, reason)
    if as_json:
        print_json({"certificate": certificate, "finished": finished, "notes": plan.notes})
    else:
        console.print(literal(f"Erased: certificate {certificate.erasure_id} ({count(len(plan.faces), 'face')})"))
    say_what_is_left(finished)


def _plan(
    session: "Session",
    settings: Settings,
    face: list[int] | None,
    identity: int | None,
    image: str | None,
    collection: str | None,
    photo: Path | None,
    least: float | None,
) -> "Plan":
    from tasks.custody import erase as erasing  # noqa: PLC0415

    if face:
        return erasing.plan_faces(session, face)
    if identity is not None:
        return erasing.plan_identity(session, identity)
    if image is not None:
        return erasing.plan_image(session, image, collection)
    assert photo is not None
    return erasing.plan_photo(session, settings, photo, least)


def _preview(plan: "Plan", as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    print_table("Would be erased", ["what", "how many"], list(plan.counts.items()))
    faces = [f"{f} (similarity {plan.similarities[f]:.3f})" if plan.similarities else str(f) for f in plan.faces]
    for what, names in (("faces", faces), ("shown in", list(plan.keys))):
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        console.print(literal(f"{what}: {', '.join(names[:SHOWN]) or 'none'}{more}"))
    for place in plan.exhibits:
        console.print(literal(f"may show it, and would be deleted: {place}"))
    for note in plan.notes:
        console.print(literal(f"- {note}"))


def say_what_is_left(finished: "Finished") -> None:
    """Say what of an erasure waits for other machines, and what could not be done now. Exit code 1 if something could not."""
    for place in finished.waiting:
        errors.print(literal(f"waits for another machine: {place}"))
    for problem in finished.left:
        errors.print(literal(f"left to do by the next run or 'visage retention': {problem}"))
    if finished.left:
        raise typer.Exit(1)


def erasures(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 50, as_json: Json = False
) -> None:
    """List the certificates of what was erased: when, why and how many rows, nothing of whom."""
    from tasks.custody.erase import certificates  # noqa: PLC0415

    with closing(Catalog(load_settings().catalog_url)) as catalog, catalog.read() as session:
        rows = certificates(session, limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Erasures",
        ["certificate", "kind", "reason", "who", "requested", "completed", "rows", "waits for"],
        [
            [
                r.erasure_id,
                r.kind,
                r.reason,
                r.who,
                r.requested_at,
                r.completed_at,
                sum(r.counts.values()),
                ", ".join(r.waits_for) or None,
            ]
            for r in rows
        ],
    )


def retention(
    collection: Annotated[str | None, typer.Option(help="Only of this collection.")] = None, as_json: Json = False
) -> None:
    """Delete embeddings whose time is over, as every night does, and finish what erasures have left to do."""
    from tasks.custody.errands import finish  # noqa: PLC0415
    from tasks.custody.retention import expire  # noqa: PLC0415

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        counts = expire(catalog, settings, settings.acting, collection)
        finished = finish(catalog, settings)
    if as_json:
        print_json(counts)
    elif counts:
        for name, faces in counts.items():
            console.print(literal(f"{name}: the embeddings of {count(faces, 'face')} were deleted"))
    else:
        console.print("No embedding's time is over.")
    say_what_is_left(finished)
