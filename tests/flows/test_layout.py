"""Templates, style sheet and scripts are laid out so that a change of them can be read as a diff."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("flows/templates", "flows/service/page/templates", "flows/service/page/static", "tasks/templates")
WIDEST = 128  # characters, as of prose elsewhere


def test_no_line_of_a_template_style_sheet_or_script_is_wider_than_a_diff_shows() -> None:
    files = [
        path for folder in FOLDERS for path in (ROOT / folder).iterdir() if path.suffix in {".html", ".css", ".js"}
    ]
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > WIDEST
    ]
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    assert wide == []
