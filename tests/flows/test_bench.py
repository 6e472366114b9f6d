"""`visage bench` measures this machine on photographs of the user's."""

import json
from pathlib import Path

import pytest

from infra.settings import Settings
from tests.command import visage
from tests.portraits import jpeg, landscape, small_collection


@pytest.mark.slow
def test_bench_measures_all_and_leaves_nothing_in_the_catalog(
    archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISAGE_RESTORE_MODEL", "")  # seconds a face
    before = visage("runs", "--json").out
    ended = visage("bench", small_collection(tmp_path / "photos"), "--out", tmp_path / "out", "--json", "--limit", 3)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["photographs"], found["found"], found["failed"]) == (3, 5, 0)
    assert found["limit"] == pytest.approx(sum(found["alone"].values()))
    assert {"decode", "detect", "align", "assess", "embed", "describe", "record"} == set(found["alone"])
    assert {"decode", "detect", "embed"} <= set(found["stages"])
    assert found["ratio"] == pytest.approx(found["seconds"] / found["limit"])
    assert found["ratio_to_forwards"] == pytest.approx(found["seconds"] / sum(found["forwards"].values()))
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == found
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert visage("runs", "--json").out == before


@pytest.mark.slow
def test_bench_without_a_face_says_so(archive: Settings, tmp_path: Path) -> None:
    (tmp_path / "hills.jpg").write_bytes(jpeg(landscape()))
    ended = visage("bench", tmp_path)
    assert ended.code == 1
    assert "no face was found in 1 picture;" in ended.err
