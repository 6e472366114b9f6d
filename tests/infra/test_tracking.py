import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from infra.mlflow_client import connect
from infra.tracking import track


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    connect(uri)
    return uri


def stored(uri: str, run_id: str) -> Any:
    return connect(uri).get_run(run_id)


def test_a_run_keeps_what_it_was_given(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    source = tmp_path / "report.html"
    source.write_text("<p>")
    with track(uri, tmp_path / "my artifacts", "nightly", "archive 7", {"collection": "archive"}) as run:
        run.params({"detector": "mtcnn", "batch": 32, "restore/restoreformer++": "1 abc"})
        run.metrics({"images": 3, "seconds/embed": 0.5, "dlib-resnet@1": 0.98})
        run.metrics({"loss": 2.0}, step=1)
        run.metrics({"loss": 1.0}, step=2)
        run.text("grüezi", "notes/hello.txt")
        run.bytes(b"\x89PNG", "sheet.png")
        run.artifact(source)
        run.artifact(source, "pages")
        run.figure(matplotlib.figure.Figure(), "plots/roc.png")
        run.table({"name": ["a", "b"], "score": [1.0, 0.5]}, "scores.json")
    kept = stored(uri, run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "archive 7"
    assert kept.data.tags["collection"] == "archive"
    assert kept.data.params == {"detector": "mtcnn", "batch": "32", "restore/restoreformerpp": "1 abc"}
    assert kept.data.metrics == {"images": 3.0, "seconds/embed": 0.5, "dlib-resnet 1": 0.98, "loss": 1.0}
    assert [m.value for m in connect(uri).get_metric_history(run.run_id, "loss")] == [2.0, 1.0]
    folder = tmp_path / "my artifacts" / "nightly" / run.run_id / "artifacts"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "notes/hello.txt", "sheet.png", "report.html", "pages/report.html", "plots/roc.png", "scores.json",
    }  # fmt: skip
    assert (folder / "notes/hello.txt").read_bytes() == "grüezi".encode()
    assert (folder / "sheet.png").read_bytes() == b"\x89PNG"
    assert json.loads((folder / "scores.json").read_text())["data"] == [["a", 1.0], ["b", 0.5]]
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_that_ends_badly_says_so(uri: str, tmp_path: Path, raised: type[BaseException], status: str) -> None:
    with pytest.raises(raised), track(uri, tmp_path, "nightly", "bad", {}) as run:
        raise raised
    assert stored(uri, run.run_id).info.status == status


def test_runs_that_start_together_share_one_new_experiment(uri: str, tmp_path: Path) -> None:
    def one(i: int) -> str:
        with track(uri, tmp_path, "shared by many", f"run {i}", {}) as run:
            return run.run_id

    with ThreadPoolExecutor(4) as pool:
        run_ids = list(pool.map(one, range(4)))
    assert len({stored(uri, run_id).info.experiment_id for run_id in run_ids}) == 1


def test_tracking_is_quiet_and_costs_nothing_before_its_first_use(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from infra.tracking import track
assert "mlflow" not in sys.modules
with track("sqlite:///{tmp_path}/new/mlflow.db", Path("{tmp_path}/artifacts"), "quiet", "run", {{}}) as run:
    run.text("a", "a.txt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
