import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from infra import ray_cluster
from infra.ray_cluster import connected, gpus, set_threads
from infra.ray_room import NoRoom, RoomLost, await_room, check_room

MEMORY = 100 * 2**20

PIPELINE = f"""
import os
import ray.data  # before `connected`, as a caller may
from infra.ray_cluster import connected

class Double:
    def __call__(self, batch):
        import flows, tasks, models, infra
        if 3 in batch["item"]:
            os._exit(1)  # as a decoder that crashes on a broken file would
        yield {{"item": 2 * batch["item"]}}

with connected(cpus=2, object_store_bytes={MEMORY}):
    ray.data.DataContext.get_current().max_errored_blocks = -1
    items = ray.data.from_items(list(range(6)), override_num_blocks=6)
    pool = ray.data.ActorPoolStrategy(size=1)
    doubled = items.map_batches(Double, compute=pool, batch_size=1, num_cpus=0.5, max_task_retries=1)
    print(sorted(i for batch in doubled.iter_batches(batch_size=None) for i in batch["item"].tolist()))
"""

JOIN = """
import sys
from infra.ray_cluster import connected
with connected(sys.argv[1]):
    import ray
    print(ray.get(ray.remote(lambda: "joined").remote()))
"""

WAIT = f"""
import time
from infra.ray_cluster import connected
with connected(cpus=1, object_store_bytes={MEMORY}):
    print("up", flush=True)
    time.sleep(100)
"""


BEGUN = f"""
import time
from infra import ray_cluster
from infra.ray_cluster import connected
ray_cluster.begin(1)
with connected(cpus=7, object_store_bytes={MEMORY}):
    import ray
    print(ray.cluster_resources()["CPU"], flush=True)
ray_cluster.begin(1)
time.sleep(100)
"""


@pytest.fixture(scope="module")
def left_behind() -> Path:
    """The folder of a run that was killed."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    return Path(tempfile.mkdtemp(prefix=f"{ray_cluster.PREFIX}{killed.pid}-"))


@pytest.fixture(scope="module")
def cluster(left_behind: Path) -> Iterator[str]:
    """The address of a local cluster that this process is connected to."""
    import ray  # noqa: PLC0415 - before `connected`, as a caller may

    with connected(cpus=2, object_store_bytes=MEMORY):
        yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


def python(code: str, *arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_a_killed_run_has_left_is_removed_by_the_next(cluster: str, left_behind: Path) -> None:
    assert not left_behind.exists()


def test_only_this_user_can_enter_its_folder(cluster: str) -> None:
    (folder,) = Path(tempfile.gettempdir()).glob(f"{ray_cluster.PREFIX}{os.getpid()}-*")
    assert folder.stat().st_mode & 0o077 == 0


def test_actors_compute_with_the_threads_they_are_given(cluster: str) -> None:
    import ray  # noqa: PLC0415

    @ray.remote(num_cpus=0)
    def threads(count: int) -> int:
        set_threads(count)
        return torch.get_num_threads()

    assert ray.get([threads.remote(1), threads.remote(3)]) == [1, 3]


def test_it_counts_the_gpus(cluster: str) -> None:
    assert gpus() == torch.cuda.device_count()


@dataclass(frozen=True)
class Wish:
    """What a job wants of the cluster."""

    wanted: dict[str, float]


def test_a_plan_that_does_not_fit_is_made_anew_as_nodes_die(cluster: str) -> None:
    plans = [Wish({"CPU": 1}), Wish({"CPU": 9})]
    assert await_room(lambda: plans.pop() if len(plans) > 1 else plans[0]) is plans[0]


def test_a_job_for_which_there_is_no_room_says_what_is_missing(cluster: str) -> None:
    await_room(lambda: Wish({"CPU": 2, "GPU": 0}))
    with pytest.raises(NoRoom, match=r"no room for 0 s: 3 CPU needed, 2 there, \d GPU needed, \d there\. End other"):
        await_room(lambda: Wish({"CPU": 3, "GPU": 1 + gpus()}), patience=0.1)
    check_room({"CPU": 2})
    with pytest.raises(RoomLost, match="a node has left"):
        check_room({"CPU": 3})


def test_a_cluster_is_joined_by_its_address_and_outlives_the_guest(cluster: str, tmp_path: Path) -> None:
    import ray  # noqa: PLC0415

    said, _ = python(JOIN, cluster, cwd=tmp_path).communicate()
    assert said == "joined\n"
    assert ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()) == 1


def test_a_client_without_the_token_is_refused(cluster: str, tmp_path: Path) -> None:
    # Ray asks twenty times, once a second, before it believes that it is refused.
    guest = python(JOIN, cluster, cwd=tmp_path, RAY_AUTH_TOKEN="0" * 64, RAY_NUM_REDIS_GET_RETRIES="2")
    said, _ = guest.communicate()
    assert guest.returncode != 0
    assert "InvalidAuthToken" in said
    assert "joined" not in said


@pytest.mark.long
def test_a_pipeline_elsewhere_survives_a_crashing_worker_and_writes_nothing(tmp_path: Path) -> None:
    run = python(PIPELINE, cwd=tmp_path, PYTHONWARNINGS="ignore::DeprecationWarning")
    said, _ = run.communicate()
    assert said == "[0, 2, 4, 8, 10]\n"
    assert run.returncode == 0


def test_termination_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    run = python(WAIT, cwd=tmp_path)
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    processes = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert run.stdout.read() == ""
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    assert list(Path(tempfile.gettempdir()).glob(f"{ray_cluster.PREFIX}{run.pid}-*")) == []


def test_a_cluster_begun_ahead_is_taken_over_and_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    run = python(BEGUN, cwd=tmp_path, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert run.stdout is not None
    assert run.stdout.readline() == "1.0\n"  # and not the 7 of a cluster of its own
    while not (keepers := psutil.Process(run.pid).children()):
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert psutil.wait_procs(keepers, timeout=20)[1] == []
    for keeper in keepers:
        assert list(Path(tempfile.gettempdir()).glob(f"{ray_cluster.PREFIX}{keeper.pid}-*")) == []
