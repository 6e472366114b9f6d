"""`visage people` and `visage audit`: decisions from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.catalog.database import Catalog
from tests.command import visage
from tests.made_up import Crowd


@pytest.fixture
def crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog_url: Callable[[str], str]) -> Crowd:
    url = fresh_catalog_url("sqlite")
    for name, value in {"HOME": str(tmp_path), "DATABASE_URL": url, "USER": "curator"}.items():
        monkeypatch.setenv(f"VISAGE_{name}", value)
    crowd = Crowd(Catalog(url), spread=0.4)
    for person in (1, 1, 1, 2, 2, 2):
        crowd.photo(person)
    crowd.night()
    return crowd


def test_the_number_of_somebody_merged_away_finds_whoever_they_were_merged_into(crowd: Crowd) -> None:
    assert visage("people", "merge", 1, 2).code == 0
    assert len(visage("people", "history", "--identity", 2, "--json").json) == 1
    kept, gone = (visage("faces", "--person", number, "--json").json for number in (1, 2))
    assert len(kept) == 6
    assert gone == kept
    found = [visage("query", f"person = {number}", "--json").json for number in (1, 2)]
    assert found[0] == found[1] != []
    assert visage("query", "person != 2", "--json").json == []
    for ended, code in (
        (visage("faces", "--person", 9), 1),
        (visage("query", "person = 9"), 2),
        (visage("query", f"person = {10**30}"), 2),
    ):
        assert (ended.code, "no person 9" in ended.err or "no identity 9" in ended.err or "smaller" in ended.err) == (
            code,
            True,
        ), ended.err


def test_people_are_named_merged_and_brought_back(crowd: Crowd) -> None:
    assert visage("people", "name", 1, "Ada", "--json").json["kind"] == "name"
    assert "decision 2 (merge, person 1, 6 faces)" in visage("people", "merge", 1, 2).out
    (person,) = visage("identities", "--json").json
    assert (person["identity_id"], person["name"], person["faces"]) == (1, "Ada", 6)
    assert visage("people", "undo", 2).code == 0
    assert [p["faces"] for p in visage("identities", "--json").json] == [3, 3]
    history = visage("people", "history", "--json").json
    assert [(d["kind"], d["who"], d["undone_by"]) for d in history] == [
        ("merge", "curator", "curator"),
        ("name", "curator", None),
    ]
    assert "Ada" in visage("people", "history", "--person", 1).out


def test_faces_are_confirmed_rejected_split_and_ignored(crowd: Crowd) -> None:
    for arguments in (
        ("confirm", 4, "--person", 1),
        ("reject", 1),
        ("split", 2),
        ("ignore", 5),
        ("ignore", "--person", 1),
        ("decline", 1, 2),
    ):
        ended = visage("people", *arguments)
        assert ended.code == 0, ended.err
    assert crowd.places()[4] == 1
    assert visage("people", "proposals").code == 0
    assert [entry["action"] for entry in visage("audit", "list", "--json").json][:2] == [
        "decide.decline",
        "decide.ignore",
    ]
    verified = visage("audit", "verify", "--json").json
    assert verified["entries"] == 6
    assert visage("audit", "verify", "--head", verified["head"]).code == 0
    assert "another catalog" in visage("audit", "verify", "--head", "0" * 63 + "1").err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("name", 99, "Ada"), 1, "'visage identities' lists them"),
        (("confirm", 99), 1, "no such faces: 99"),
        (("ignore",), 2, "either faces, or --person"),
        (("accept", 1, 2), 1, "'visage people proposals'"),
        (("undo", 7), 1, "'visage people history'"),
    ],
)
def test_mistakes_are_explained(crowd: Crowd, arguments: tuple[object, ...], code: int, message: str) -> None:
    ended = visage("people", *arguments)
    assert ended.code == code
    assert message in ended.err.replace("\n", " ").replace("│", "").replace("  ", " ")
    assert crowd.places()[1] == 1


def test_faces_are_erased_after_a_preview_and_certified(crowd: Crowd, tmp_path: Path) -> None:
    visage("people", "name", 1, "Ada")
    table = tmp_path / "table"
    visage("export", table, "--format", "jsonl")
    assert f"would be deleted: {table}" in visage("erase", "--identity", 1).out.replace("\n", "")
    preview = visage("erase", "--identity", 1, "--json")
    assert preview.json["exhibits"] == [str(table)]
    assert preview.json["faces"] == [1, 2, 3]
    assert preview.json["keys"] == ["crowd/1.jpg", "crowd/2.jpg", "crowd/3.jpg"]
    assert any("never deletes them" in note for note in preview.json["notes"])
    assert "nothing was erased" in preview.err
    assert len(crowd.places()) == 6
    erased = visage("erase", "--identity", 1, "--reason", "asked for", "--yes", "--json")
    assert erased.json["certificate"]["completed_at"] is not None
    assert set(crowd.places()) == {4, 5, 6}
    assert not table.exists()
    assert visage("erase", "--image", "4.jpg", "--yes").code == 0
    assert set(crowd.places()) == {5, 6}
    assert [c["kind"] for c in visage("erasures", "--json").json] == ["image", "identity"]
    assert "asked for" in visage("erasures").out
    places = visage("places", "list", "--json").json
    assert {place["keeps"] for place in places} == {"exhibits"}
    assert visage("places", "forget", places[0]["place_id"], "--yes", "--json").json == {
        "place": places[0]["place_id"], "unreached": 0,
    }  # fmt: skip
    assert "no place" in visage("places", "forget", places[0]["place_id"], "--yes").err
    assert visage("erase", "--face", 5, "--face", 99).code == 1
    assert "exactly one of" in visage("erase").err.replace("\n", " ")


def test_one_face_is_a_face_and_several_are_faces(crowd: Crowd) -> None:
    assert "(confirm, person 1, 1 face)" in visage("people", "confirm", 1).out
    assert "(confirm, person 1, 2 faces)" in visage("people", "confirm", 1, 2).out
    assert "(1 face)" in visage("erase", "--face", 5, "--yes").out


def test_a_collection_says_on_what_grounds_and_for_how_long_it_is_kept(crowd: Crowd) -> None:
    assert visage("collections", "set", "crowd", "--retention-days", 30, "--legal-basis", "contract", "--json").json == {
        "name": "crowd", "uri": "/photos", "retention_days": 30, "legal_basis": "contract", "consent_note": None,
    }  # fmt: skip
    assert visage("collections", "set", "crowd", "--consent-note", "in the archive").code == 0
    (row,) = visage("collections", "list", "--json").json
    assert (row["kept"], row["legal_basis"], row["consent_note"]) == ("30 days", "contract", "in the archive")
    assert "No embedding" in visage("retention").out
    assert visage("retention", "--collection", "nothing").code == 1
    assert visage("collections", "set", "crowd", "--retention-days", 36_501).code == 2
    visage("collections", "set", "crowd", "--retention-days", 0)
    assert visage("collections", "list", "--json").json[0]["kept"] == "for ever"
