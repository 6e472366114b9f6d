"""`visage people`: what a person decides about faces, and what was decided."""

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count

if TYPE_CHECKING:
    from tasks.identities.decisions import Proposal

app = typer.Typer(name="people", help="Decide who is who. No later run overrides a decision.", no_args_is_help=True)
Person = Annotated[int, typer.Argument(metavar="PERSON", help="A number that 'visage identities' shows.")]
Faces = Annotated[list[int], typer.Argument(metavar="FACE...", help="Numbers that 'visage faces' shows.")]
OfPerson = Annotated[
    int | None,
    typer.Option(
        "--person", "--identity", help="The person it is about; default: the one that the faces belong to now."
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of rows.")]


@app.command()
def name(person: Person, name: str, as_json: Json = False) -> None:
    """Call a person something."""
    _decide(as_json, "name", person, name)


@app.command()
def confirm(faces: Faces, person: OfPerson = None, as_json: Json = False) -> None:
    """These faces are this person: they move there and stay."""
    _decide(as_json, "confirm", faces, person)


@app.command()
def reject(faces: Faces, person: OfPerson = None, as_json: Json = False) -> None:
    """These faces are not this person: they leave and never return."""
    _decide(as_json, "reject", faces, person)


@app.command()
def merge(
    person: Person,
    other: Annotated[int, typer.Argument(metavar="OTHER", help="Who is the same; their number goes.")],
    as_json: Json = False,
) -> None:
    """Two are one person: all their faces stay together."""
    _decide(as_json, "merge", person, other)


@app.command()
def split(faces: Faces, as_json: Json = False) -> None:
    """These faces of a person are somebody else: they become a person of their own."""
    _decide(as_json, "split", faces)


@app.command()
def ignore(
    faces: Annotated[list[int] | None, typer.Argument(metavar="FACE...", help="Faces to leave out for good.")] = None,
    person: Annotated[int | None, typer.Option("--person", "--identity", help="Leave out a person instead.")] = None,
    as_json: Json = False,
) -> None:
    """Leave faces, or a person, out of lists and proposals, for good."""
    if bool(faces) == (person is not None):
        raise typer.BadParameter("give either faces, or --person")
    if person is None:
        _decide(as_json, "ignore", faces)
    else:
        _decide(as_json, "ignore_identity", person)


@app.command()
def accept(person: Person, other: Person, as_json: Json = False) -> None:
    """Accept a proposed merge."""
    _decide(as_json, "accept", person, other)


@app.command()
def decline(person: Person, other: Person, as_json: Json = False) -> None:
    """Two are different people: never merged, never proposed again."""
    _decide(as_json, "decline", person, other)


@app.command()
def undo(
    decision: Annotated[int, typer.Argument(metavar="DECISION", help="A number that 'visage people history' shows.")],
    as_json: Json = False,
) -> None:
    """Take a decision back: the faces that it moved return."""
    _decide(as_json, "undo", decision)


@app.command()
def proposals(limit: Limit = 20, as_json: Json = False) -> None:
    """List merges that the machine proposes, with the nearest pairs of faces. Accept or decline them."""
    from tasks.identities import decisions  # noqa: PLC0415 - a second of imports

    with closing(Catalog(load_settings().catalog_url)) as catalog, catalog.read() as session:
        rows = decisions.proposals(session, limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Proposed merges: are these one person?",
        ["person", "name", "faces", "other", "name", "faces", "nearest pairs (face ~ face: similarity, probability)"],
        [[r.identity_a, r.name_a, r.faces_a, r.identity_b, r.name_b, r.faces_b, _evidence(r)] for r in rows],
    )


@app.command()
def history(
    person: Annotated[int | None, typer.Option("--person", "--identity", help="Only about this person.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List decisions, the latest first."""
    from tasks.identities import decisions  # noqa: PLC0415 - a second of imports

    with closing(Catalog(load_settings().catalog_url)) as catalog, catalog.read() as session:
        rows = decisions.history(session, limit, person)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Decisions",
        ["decision", "kind", "who", "when", "person", "other", "name", "faces", "undone"],
        [
            [
                row.decision_id,
                row.kind,
                row.who,
                row.decided_at,
                row.identity_id,
                row.other_identity_id,
                row.name,
                _abridged(row.faces),
                row.undone_by,
            ]
            for row in rows
        ],
    )


def _decide(as_json: bool, kind: str, *arguments: object) -> None:
    """Let the function of `tasks.identities.decisions` decide that is called so."""
    from tasks.identities import decisions  # noqa: PLC0415 - a second of imports

    what: Callable[..., decisions.Decided] = getattr(decisions, kind)
    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog, catalog.write() as session:
        decided = what(session, settings.acting, *arguments)
    if as_json:
        print_json(decided)
        return
    about = "" if decided.identity_id is None else f", person {decided.identity_id}"
    faces = f", {count(decided.faces, 'face')}" if decided.faces else ""
    verb = "Undone" if kind == "undo" else "Decided"
    console.print(literal(f"{verb}: decision {decided.decision_id} ({decided.kind}{about}{faces})"))


def _evidence(proposal: "Proposal") -> str:
    return "; ".join(
        f"{pair.face_a} ~ {pair.face_b}: {pair.similarity:.3f}"
        + ("" if pair.probability is None else f", {pair.probability:.0%}")
        for pair in proposal.evidence
    )


def _abridged(faces: tuple[int, ...], shown: int = 8) -> str:
    more = f" and {len(faces) - shown} more" if len(faces) > shown else ""
    return ", ".join(map(str, faces[:shown])) + more
