"""`visage`: exit codes, what goes to stdout and stderr, and messages that say what to do."""

import errno
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from sqlalchemy import func, select

from flows.cli import output
from flows.cli.app import app
from infra.catalog.database import Catalog
from infra.catalog.images import Listed, put_pending
from infra.catalog.tables.schema import Image, Run, now
from infra.catalog.work import nights
from infra.settings import PREFIX, Settings
from tests.archive import BROKEN
from tests.command import Ended, visage
from tests.portraits import jpeg, landscape, mirrored, portrait, small_collection

VISAGE = Path(sys.executable).parent / "visage"
HEAVY = ("torch", "ray", "mlflow", "prefect", "boto3", "fastapi", "pyarrow")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which nothing has happened yet."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VISAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISAGE_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


def refused(ended: Ended, code: int, *words: str) -> None:
    """The command ended with `code`, said `words` on stderr and nothing on stdout, and showed no trace."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def test_help_comes_without_the_heavy_libraries() -> None:
    code = f"import sys, flows.cli.app; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_names_every_command() -> None:
    ended = visage("--help")
    assert ended.code == 0
    for (name, *_), _ in commands(typer.main.get_command(app)):
        assert f"\n  {name} " in ended.out


def test_every_command_can_answer_in_json() -> None:
    without = [
        " ".join(path)
        for path, command in commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    ]
    assert without == []


@pytest.mark.parametrize(
    "question",
    [
        "runs",
        "failures",
        "faces",
        "identities",
        "collections list",
        "models list",
        "models show mtcnn",
        "doctor",
        "down",
    ],
)
def test_json_is_all_that_stdout_gets(archive: Settings, question: str) -> None:
    ended = visage(*question.split(), "--json")
    assert ended.code in (0, 1)  # doctor may not like this machine
    assert json.loads(ended.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) is not None
    assert ended.err == ""


def test_a_mistyped_command_is_wrong_usage(empty: Path) -> None:
    refused(visage("serach", "a.jpg"), 2, "serach")
    refused(visage("faces", "--limit", "0"), 2, "--limit")
    refused(visage("faces", "--min-quality", "2"), 2, "--min-quality")


def test_unknown_setting_is_refused_by_every_command(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISAGE_HOEM", "/elsewhere")
    for command in ("runs", "doctor", "down", "run archive"):
        refused(visage(*command.split()), 1, "VISAGE_HOEM", "VISAGE_HOME")


def test_a_home_that_cannot_be_made_is_named_with_what_to_do(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "file").touch()
    for home in (empty / "file", empty / "file" / "home"):
        monkeypatch.setenv("VISAGE_HOME", str(home))
        ended = visage("runs")
        refused(ended, 1, f"error: {home}: ", "Move it, or name another place", "VISAGE_HOME")
        assert "Errno" not in ended.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.ENOTEMPTY])
def test_what_the_system_says_comes_with_the_path_and_without_its_number(
    empty: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/archive/catalog.db")

    monkeypatch.setattr(nights, "runs", fails)
    ended = visage("runs")
    refused(ended, 1, "error: /archive/catalog.db: ")
    assert "Errno" not in ended.err


def test_a_full_disk_without_a_path_tells_where_the_home_is(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nights, "runs", fails)
    refused(visage("runs"), 1, "no room is left on the disk", str(empty / "home"))


ASKED = {  # what is asked for, and how that ends; 2: another command has to be written
    "serach": 2,
    "runs --limit 0": 2,
    "runs --nonsense": 2,
    "faces --min-quality 2": 2,
    "failures --run many": 2,
    "collections": 2,
    "collections add archive /": 1,
    "collections add a/b /": 2,
    "collections add new ftp://server/photos": 2,
    "collections add new /nowhere": 1,
    "collections add new / --sensitive shoe_size": 2,
    "collections set nowhere --retention-days 3": 1,
    "collections set archive --retention-days -1": 2,
    "collections set archive --uri /nowhere": 1,
    "collections set archive --uri ftp://server/photos": 2,
    "collections rename archive a/b": 2,
    "collections rename archive archive": 1,
    "collections rename nowhere new": 1,
    "collections remove nowhere": 1,
    "collections split nowhere 2": 1,
    "collections split archive 0": 2,
    "run nowhere": 1,
    "run archive --part 5/4": 2,
    "run archive --after-key b --through-key a": 2,
    "faces --collection nowhere": 1,
    "schedule nightly --collection nowhere --cron 0": 2,
    "schedule a/b --collection archive --cron 0_2_*_*_*": 2,
    "schedule pause nowhere": 1,
    "query nonsense": 2,
    "query collection=nowhere": 2,
    "query --count-by nonsense": 2,
    "duplicates nowhere": 1,
    "search": 2,
    "search /nowhere/a.jpg": 2,
    "search --face 999": 1,
    "search --person 999": 1,
    "search --face 1 --attribute age": 2,
    "search --face 99999999999999999999": 2,
    "people confirm 999": 1,
    "people undo 999": 1,
    "people ignore": 2,
    "erase": 2,
    "erase --face 999": 1,
    "erase --image nowhere.jpg": 1,
    "retry nowhere": 1,
    "retention --collection nowhere": 1,
    "models show nonsense": 1,
    "models promote dlib-resnet": 2,
    "models promote dlib-resnet@99": 1,
    "models rollback dlib-resnet": 1,
    "backfill status": 0,
    "backfill run": 1,
    "tokens revoke nobody": 1,
    "opinions nonsense": 1,
    "archive nowhere /nowhere/file": 1,
    "export /nowhere/new --format csv --embeddings": 2,
    "db copy nonsense: sqlite://": 1,
}


@pytest.mark.parametrize("command", ASKED)
def test_exit_codes_tell_what_was_asked_wrongly_from_what_did_not_work(archive: Settings, command: str) -> None:
    ended = visage(*(word.replace("_", " ") if "*" in word else word for word in command.split()), "--json")
    assert ended.code == ASKED[command], ended.err
    if ended.code == 0:
        assert ended.json is not None
        return
    assert ended.out == ""
    assert "Traceback" not in ended.err
    told = json.loads(ended.err.splitlines()[-1])
    assert told.keys() == {"error", "exit_code"}
    assert told["exit_code"] == ended.code
    assert told["error"]


def test_a_bug_ends_in_json_too(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(nights, "runs", broken)
    ended = visage("runs", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert json.loads(ended.err.splitlines()[-1]) == {"error": "list index out of range", "exit_code": 1}


def test_an_interruption_ends_in_json_too(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nights, "runs", interrupted)
    ended = visage("runs", "--json")
    assert (ended.code, ended.out) == (130, "")
    assert json.loads(ended.err)["exit_code"] == 130


def test_the_version_is_that_of_the_package() -> None:
    assert visage("--version").out == f"visage {importlib.metadata.version('visage')}\n"


def test_metrics_written_to_a_file_say_so_in_json(archive: Settings, tmp_path: Path) -> None:
    file = tmp_path / "visage.prom"
    assert visage("metrics", "--out", file, "--json").json == {"written": str(file)}
    assert "visage_images" in file.read_text()


def test_an_error_that_is_a_bug_shows_its_trace(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(nights, "runs", broken)
    ended = visage("runs")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.endswith("error: list index out of range\n")


def test_a_reader_that_goes_away_gets_no_trace(archive: Settings) -> None:
    ended = subprocess.run(f"{VISAGE} faces --json | true", shell=True, capture_output=True, text=True, check=True)
    assert ended.stderr == ""


# --- collections


def test_a_collection_is_added_by_its_absolute_path(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "photos").mkdir()
    monkeypatch.chdir(empty)
    ended = visage("collections", "add", "archive", "photos/../photos", "--sensitive", "age", "--json")
    assert ended.code == 0
    assert ended.json == {"name": "archive", "uri": str(empty / "photos"), "empty": True}
    (listed,) = visage("collections", "list", "--json").json
    assert listed == {
        "name": "archive", "uri": str(empty / "photos"), "sensitive": "age",
        "kept": "for ever", "legal_basis": None, "consent_note": None,
        "pending": 0, "done": 0, "failed": 0, "missing": 0,
    }  # fmt: skip


def test_a_name_can_be_taken_once(empty: Path) -> None:
    assert visage("collections", "add", "archive", empty).code == 0
    refused(visage("collections", "add", "archive", empty), 1, "'archive'")
    assert len(visage("collections", "list", "--json").json) == 1


def test_adding_a_folder_that_holds_our_own_files_says_that_they_are_passed_over(empty: Path) -> None:
    assert "of its own in home/ there" in visage("collections", "add", "archive", empty).out
    refused(visage("collections", "add", "crops", empty / "home"), 2, "VISAGE_OBJECTS_URI")


def test_a_folder_that_is_not_there_is_named_and_not_added(empty: Path) -> None:
    refused(visage("collections", "add", "archive", empty / "nowhere"), 1, str(empty / "nowhere"))
    refused(visage("collections", "add", "archive", __file__), 1, __file__)
    assert visage("collections", "list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("archive", ".", "--sensitive", "shoe_size"), "shoe_size"),
        (("archive", "ftp://server/photos"), "ftp://"),
        (("archive", "s3://"), "bucket"),
        (("archive", ""), "folder"),
        (("archive", ".", "--include", "[z-a]*.jpg"), "[z-a]"),
        (("archive", ".", "--exclude", "[z-a]*.jpg"), "[z-a]"),
        (("", "."), "name"),
        (("two\nlines", "."), "name"),
    ],
)
def test_what_makes_no_collection_is_wrong_usage(empty: Path, arguments: tuple[str, ...], word: str) -> None:
    refused(visage("collections", "add", *arguments), 2, word)
    assert visage("collections", "list", "--json").json == []


def test_names_are_printed_as_they_are(empty: Path) -> None:
    ended = visage("collections", "add", "[red]the 'old' ones", empty)
    assert "[red]the 'old' ones" in ended.out
    assert """visage run '[red]the '"'"'old'"'"' ones'""" in ended.out  # to be pasted into a shell
    assert "[red]the 'old' ones" in visage("collections", "list").out


def test_an_unknown_collection_is_an_error_wherever_it_is_named(archive: Settings) -> None:
    for command in ("run", "faces --collection", "failures --collection"):
        refused(visage(*command.split(), "albums"), 1, "'albums'", "archive", "visage collections add albums")


@pytest.fixture
def known(empty: Path) -> Path:
    """A folder with a photograph, which the collection `archive` knows."""
    photos = empty / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(jpeg(portrait()))
    assert visage("collections", "add", "archive", photos).code == 0
    with Catalog(f"sqlite:///{empty / 'home' / 'catalog.db'}").write() as session:
        put_pending(session, 1, [Listed("a.jpg", "1", 1, now())])
    return photos


def test_a_collection_is_removed_once_somebody_has_seen_what_would_go(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visage("schedule", "nightly", "--collection", "archive", "--cron", "0 2 * * *").code == 0
    seen = visage("collections", "remove", "archive", "--json")
    assert (seen.code, seen.json["counts"]["images"], seen.json["schedules"]) == (0, 1, ["nightly"])
    assert "nothing was removed ('--yes' does it)" in seen.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert "the schedule nightly" in visage("collections", "remove", "archive").out
    assert len(visage("collections", "list", "--json").json) == 1
    removed = visage("collections", "remove", "archive", "--yes", "--json")
    assert removed.json["certificate"]["kind"] == "collection"
    assert visage("collections", "list", "--json").json == visage("schedule", "list", "--json").json == []
    assert (known / "a.jpg").exists()
    refused(visage("collections", "remove", "archive", "--yes"), 1, "'archive'")
    assert visage("collections", "add", "archive", known).code == 0


def test_a_collection_is_renamed(known: Path) -> None:
    assert visage("collections", "rename", "archive", "press", "--json").json == {"name": "press", "before": "archive"}
    assert [row["name"] for row in visage("collections", "list", "--json").json] == ["press"]
    refused(visage("collections", "rename", "press", "a/b"), 2, "'a/b' is no name")
    refused(visage("collections", "rename", "archive", "b"), 1, "'archive'")


def test_a_collection_moves_only_to_where_its_photographs_are(known: Path) -> None:
    elsewhere = known.rename(known.with_name("elsewhere"))
    known.mkdir()
    refused(visage("collections", "set", "archive", "--uri", known), 2, "of 1 photograph of 'archive', none is there")
    refused(visage("collections", "set", "archive", "--uri", known / "nowhere"), 1, "no such folder")
    moved = visage("collections", "set", "archive", "--uri", elsewhere, "--retention-days", 9, "--json").json
    assert (moved["uri"], moved["found"], moved["missing"], moved["new"]) == (str(elsewhere), 1, 0, 0)
    assert moved["retention_days"] == 9
    assert "1 photograph is there under the same key" in visage("collections", "set", "archive", "--uri", elsewhere).out


# --- questions


def test_runs_tell_what_happened(archive: Settings) -> None:
    (run,) = visage("runs", "--json").json
    assert (run["status"], run["collection"], run["error"]) == ("done_with_failures", "archive", None)
    assert (run["counts"]["new"], run["counts"]["processed"], run["counts"]["faces"]) == (7, 7, 4)
    assert run["counts"]["failed"] == {"decode: truncated": 2}
    assert "done_with_failures" in visage("runs").out


def test_failures_name_key_stage_reason_and_what_to_do(archive: Settings) -> None:
    failures = visage("failures", "--json").json
    assert {failure["key"] for failure in failures} == set(BROKEN)
    for failure in failures:
        assert (failure["stage"], failure["collection"], failure["retryable"]) == ("decode", "archive", False)
        assert failure["key"] in failure["message"]
    assert visage("failures", "--run", "99", "--json").json == []


def test_a_key_neither_styles_the_table_nor_steers_the_terminal(archive: Settings) -> None:
    out = visage("failures", "--collection", "archive").out
    assert r"[bold]\x1b[31mred\n:smile:.jpg" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("command", ["runs", "failures", "faces", "identities", "status", "collections list"])
def test_a_narrow_terminal_breaks_no_word(archive: Settings, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def words(printed: str) -> set[str]:
        return {word for word in re.findall(r"[^\s│┃━╇]+", printed) if len(word) <= output.LONGEST_WORD}

    wide = words(visage(*command.split()).out)
    monkeypatch.setattr(output, "console", Console(width=60))
    narrow = visage(*command.split()).out
    assert wide <= words(narrow)
    assert max(map(len, narrow.splitlines())) <= 60 or command == "status"  # which explains below its table


def test_a_table_too_wide_for_the_terminal_has_a_line_for_each_value(
    archive: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "console", Console(width=60))
    assert re.search(r"^status +done_with_failures\s*$", visage("runs").out, re.MULTILINE)
    assert "┃" in visage("identities").out


def test_a_title_is_not_folded_to_the_width_of_its_table(archive: Settings) -> None:
    assert "\nPhotos of archive that are there more than once\n" in "\n" + visage("duplicates", "archive").out


def test_faces_are_listed_with_all_that_is_known(archive: Settings) -> None:
    faces = visage("faces", "--json").json
    assert [face["keys"] for face in faces] == [["a.jpg", "z_copy_of_a.jpg"], ["b.jpg"], ["c/pair.jpg"], ["c/pair.jpg"]]
    assert [face["restoration"] is not None for face in faces] == [False, True, False, False]
    for face in faces:
        said = {attribute["name"]: attribute for attribute in face["attributes"]}
        assert said["expression"]["model"] == "mini-xception@1"
        assert {
            "yaw",
            "pitch",
            "roll",
            "sharpness",
            "exposure",
            "beyond_border",
            "color",
            "inter_eye_distance",
        } <= said.keys()
        assert (said["yaw"]["unit"], said["yaw"]["kind"], said["yaw"]["model"]) == ("degrees", "degrees", "measured@2")
        assert 0 <= face["quality"] <= 1
    best = max(face["quality"] for face in faces)
    assert len(visage("faces", "--min-quality", best, "--json").json) >= 1
    assert len(visage("faces", "--limit", 2, "--json").json) == 2
    assert "(synthetic)" in visage("faces").out


def test_identities_hold_who_is_alike_but_never_two_of_one_photo(archive: Settings) -> None:
    people = visage("identities", "--json").json
    assert len(people) >= 1
    for person in people:
        members = visage("faces", "--identity", person["identity_id"], "--json").json
        assert len(members) == person["faces"] == person["photos"] >= 2
        assert [member["identity_id"] for member in members] == [person["identity_id"]] * len(members)
    assert visage("identities", "--min-faces", 4, "--json").json == []
    assert "c/pair.jpg" in visage("identities").out


def test_search_finds_whom_a_photo_shows(archive: Settings, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(mirrored(300)))
    (answer,) = visage("search", photo, "--limit", 3, "--json").json
    similarities = [match["similarity"] for match in answer["matches"]]
    assert len(similarities) == 3
    assert similarities == sorted(similarities, reverse=True)
    assert all(match["probability"] > 0.5 for match in answer["matches"])
    table = visage("search", photo).out
    assert "Face 1 of 1" in table
    assert "c/pair.jpg" in table


def test_search_answers_for_every_face_of_a_photo(archive: Settings) -> None:
    photos = archive.home.parent / "photos"
    answers = visage("search", photos / "c" / "pair.jpg", "--limit", 1, "--json").json
    assert len(answers) == 2
    assert [answer["matches"][0]["similarity"] for answer in answers] == pytest.approx([1, 1], abs=1e-3)


def test_search_says_what_is_wrong_with_a_photo(
    archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "[photo].jpg"
    refused(visage("search", photo), 2, "does not exist")
    photo.write_bytes(jpeg(landscape()))
    refused(visage("search", photo), 1, f"error: {photo}: no face was found")
    photo.write_bytes(b"plainly no picture")
    refused(visage("search", photo), 1, f"error: {photo}: ")
    monkeypatch.setenv("VISAGE_MAX_BYTES", "1000")
    photo.write_bytes(jpeg(portrait()))
    refused(visage("search", photo), 1, f"error: {photo}: larger than 1,000 bytes", "VISAGE_MAX_BYTES")


def test_search_by_a_face_of_the_catalog_goes_on_where_it_ended(archive: Settings) -> None:
    (first,) = visage("search", "--face", 1, "--limit", 2, "--json").json
    (rest,) = visage("search", "--face", 1, "--limit", 2, "--after", first["after"], "--json").json
    found = [match["face"]["face_id"] for match in first["matches"] + rest["matches"]]
    assert sorted(found) == [2, 3, 4]
    assert rest["after"] is None
    table = visage("search", "--face", 1, "--limit", 2).out
    assert f"--after {first['after']}" in table


def test_a_summary_shows_names_as_they_are_and_commands_that_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli.nights import _print_summary  # noqa: PLC0415

    counts: dict[str, Any] = dict.fromkeys(
        ("new", "changed", "missing", "unchanged", "processed", "faces", "restored", "duplicates"), 0
    )
    people = {"grouped": 0, "alone": 0, "calibrated": True}
    _print_summary("[red]old ones", {**counts, "seconds": {}, "people": people, "failed_images": 2})
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("[red]old ones: 0 new, ")
    assert "'visage failures --collection '[red]old ones'' says why" in said


def test_search_keeps_to_its_filters(archive: Settings, tmp_path: Path) -> None:
    (answer,) = visage("search", "--face", 1, "--min-quality", 1, "--json").json
    assert answer["matches"] == []
    for arguments, code, said in (
        (("--collection", "nowhere"), 1, "no collection is called 'nowhere'"),
        (("--attribute", "mood=good"), 2, "no face has the attribute 'mood'"),
        (("--attribute", "age"), 2, "name=label or name=least..most"),
        (("--taken-from", "2020-01-02", "--taken-until", "2020-01-01"), 2, "no day from 2020-01-02"),
        (("--face", 999), 1, "face 999: not in the catalog"),
        (("--after", "nonsense"), 2, "no place in an answer"),
    ):
        refused(visage("search", "--face", 1, *arguments), code, said)
    refused(visage("search", "--person", 999), 1, "the catalog knows no person 999")
    (tmp_path / "a.jpg").write_bytes(jpeg(portrait()))
    refused(visage("search", tmp_path / "a.jpg", "--limit", 5000), 2, "limit 5000: ask for 1 to")
    refused(visage("search"), 2, "names nobody to look for")
    refused(visage("search", "--face", 1, "--number", 1), 2, "name one photo")


def test_search_before_the_first_run_says_how_to_run(empty: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(portrait()))
    refused(visage("search", photo), 1, "'visage run COLLECTION'")


def test_restore_tells_a_photo_that_could_not_be_processed_by_its_exit_code(archive: Settings, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    ended = visage("restore", tmp_path / "broken.jpg", "--out", tmp_path / "out", "--json")
    assert (ended.code, ended.json[0]["written"]) == (3, None)


KILLED_WHILE_IMPORTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), int(sys.argv[1]))

sys.meta_path.insert(0, Interrupt())
from flows.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_interrupted_while_it_starts_says_nothing_and_exits_as_interrupted(number: signal.Signals) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_IMPORTED, str(int(number))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


STILL_COMPUTES = """
import atexit, sys
import torch
from flows import cli
from flows.cli import app
from tasks.execution.time_limit import TimedOut, Workers

def compute():
    numbers = torch.rand(1000, 1000)
    while True:
        numbers @ numbers

def run():
    try:
        Workers(1, 0.1, "test")(compute)
    except TimedOut:
        atexit.register(print, "over")
        sys.exit(3)

app.run = run
cli.main()
"""


def test_a_command_that_gave_a_thread_up_ends_with_its_own_exit_code_while_that_still_computes() -> None:
    done = subprocess.run([sys.executable, "-c", STILL_COMPUTES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "over\n", "")


# --- upkeep


def findings(ended: Ended) -> dict[str, tuple[bool, str, str]]:
    return {row["what"]: (row["well"], row["found"], row["mend"]) for row in ended.json}


def test_doctor_is_content_with_a_machine_that_can_run(archive: Settings) -> None:
    found = findings(visage("doctor", "--json"))
    assert all(well for what, (well, *_) in found.items() if not what.startswith("free ")), found
    assert found["home folder"][1] == str(archive.home)
    for model in ("mtcnn@1", "dlib-resnet@1", "real-esrgan-x4plus@1", "mini-xception@1"):
        assert model in found["models"][1]


def test_doctor_says_which_model_is_missing_and_how_to_get_it(empty: Path, empty_registry: Path) -> None:
    (empty / "home").mkdir()
    shutil.copyfile(empty_registry, empty / "home" / "mlflow.db")
    ended = visage("doctor")
    assert ended.code == 1
    assert "bad models: " in ended.out
    assert "-> run 'visage models install'" in ended.out
    assert findings(visage("doctor", "--json"))["home folder"][0]


def test_doctor_misses_a_single_model_that_the_settings_name(
    archive: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISAGE_EMBED_MODEL", "lightcnn-9")
    ended = visage("doctor", "--json")
    well, said, _ = findings(ended)["models"]
    assert (ended.code, well) == (1, False)
    assert "lightcnn-9" in said


def test_doctor_looks_on_where_the_home_cannot_be_written(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "file").touch()
    monkeypatch.setenv("VISAGE_HOME", str(empty / "file" / "home"))
    ended = visage("doctor", "--json")
    found = findings(ended)
    assert ended.code == 1
    assert ended.err == ""
    assert not found["home folder"][0]
    assert "VISAGE_HOME" in found["home folder"][2]
    assert found["Python"][0]
    assert found["device"][0]


def test_down_without_a_server_is_no_error(empty: Path) -> None:
    ended = visage("down")
    assert (ended.code, ended.out) == (0, "no local Prefect server is running\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_stopping_the_service_is_no_failure(empty: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [VISAGE, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - it takes no lock
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while '"url"' not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "interrupted" not in said


# --- runs, as real as they get


@pytest.fixture
def machine_of_its_own(
    empty: Path,
    weights_dir: Path,
    tracking_uri: str,
    with_prefect_database: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """A folder for photographs, and a home with models whose Prefect server is stopped at the end."""
    with_prefect_database(empty / "home")
    shutil.copyfile(tracking_uri.removeprefix("sqlite:///"), empty / "home" / "mlflow.db")
    for name, value in {"WEIGHTS": str(weights_dir), "ENGINE": "inline", "RESTORE_MODEL": ""}.items():
        monkeypatch.setenv(PREFIX + name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    yield empty
    visage("down")


def real(*arguments: object) -> Ended:
    done = subprocess.run([VISAGE, *map(str, arguments)], capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_run_processes_what_is_new_and_tells_failures_by_its_exit_code(machine_of_its_own: Path) -> None:
    photos = small_collection(machine_of_its_own / "photos")
    assert real("collections", "add", "archive", photos).code == 0
    first = real("run", "archive", "--json")
    assert first.code == 0, first.err
    assert (first.json["processed"], first.json["faces"], first.json["engine"]) == (5, 4, "inline")
    assert "5/5" in first.err  # the progress went to stderr
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    second = real("run", "archive", "--json")
    assert second.code == 3
    assert (second.json["processed"], second.json["failed_images"]) == (1, 1)
    assert [run["status"] for run in visage("runs", "--json").json] == ["done_with_failures", "done"]
    assert visage("down", "--json").json == {"stopped": True}
    assert visage("down", "--json").json == {"stopped": False}


@pytest.mark.slow
def test_run_without_models_says_once_how_to_get_them(machine_of_its_own: Path, empty_registry: Path) -> None:
    shutil.copyfile(empty_registry, machine_of_its_own / "home" / "mlflow.db")
    assert visage("collections", "add", "archive", machine_of_its_own).code == 0
    ended = real("run", "archive")
    refused(ended, 1, "is not installed. Run 'visage models install'.")
    assert ended.err.count("is not installed") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_run_is_closed_as_such_and_the_next_one_finishes(
    machine_of_its_own: Path, number: signal.Signals
) -> None:
    photos = machine_of_its_own / "photos"
    photos.mkdir()
    many = 40  # as many again to do when the first groups are recorded
    for i in range(many):
        (photos / f"{i:03}.jpg").write_bytes(jpeg(portrait(400 + i)))
    assert visage("collections", "add", "archive", photos).code == 0
    catalog = Catalog(f"sqlite:///{machine_of_its_own / 'home' / 'catalog.db'}")
    with subprocess.Popen(
        [VISAGE, "run", "archive"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's job in the background ignores SIGINT, and so does what it starts, this test among it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it takes no lock
    ) as process:
        done = 0
        while not done and process.poll() is None:
            time.sleep(0.05)
            with catalog.read() as session:
                done = session.scalar(select(func.count()).where(Image.status == "done")) or 0
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("interrupted; what was recorded stays, the next run goes on from there\n")
    with catalog.read() as session:
        run = session.scalars(select(Run)).one()
        assert (run.status, run.error) == ("failed", "interrupted")
        assert run.finished_at is not None
    catalog.close()
    ended = real("run", "archive", "--json")
    assert ended.code == 0, ended.err
    assert 0 < ended.json["processed"] < many
    assert visage("collections", "list", "--json").json[0]["done"] == many
