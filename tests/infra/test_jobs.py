"""Jobs in the catalog belong to processes, and processes to a machine; what is asked for twice at once is done once."""

from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta

import pytest
from sqlalchemy import update

from infra.catalog.database import Catalog
from infra.catalog.service import idempotency, jobs
from infra.catalog.service.idempotency import Known
from infra.catalog.service.jobs import JobRunning
from infra.catalog.tables.schema import now
from infra.catalog.tables.service import Job, JobStatus
from infra.catalog.work.runs import LEASE

NO_PROCESS = 2**22 + 1  # above any process number


def opened(catalog: Catalog, **changed: object) -> int:
    """A job of this process, but for what is changed."""
    with catalog.write() as session:
        job_id = jobs.open_job(session, "run", "archive", "ada").id
        session.execute(update(Job).where(Job.id == job_id).values(changed or {"who": "ada"}))
    return job_id


def swept(catalog: Catalog, job_id: int, *watched: int) -> Job:
    with catalog.write() as session:
        jobs.sweep(session, watched)
    with catalog.read() as session:
        return session.get_one(Job, job_id)


def elsewhere(silent_for: timedelta) -> dict[str, object]:
    """A job of another container of the same host name, where process numbers mean something else."""
    return {"host": "a-host pid:[2]", "process_id": NO_PROCESS, "heartbeat_at": now() - silent_for}


def test_a_job_whose_process_is_gone_from_this_machine_is_closed_at_once(catalog: Catalog) -> None:
    job = swept(catalog, opened(catalog, process_id=NO_PROCESS))
    assert job.status == JobStatus.CRASHED.value
    assert job.finished_at is not None
    assert "'visage runs' shows what became of the work" in (job.error or "")


def test_a_job_of_another_machine_is_left_alone_while_it_gives_signs_of_life(catalog: Catalog) -> None:
    job_id = opened(catalog, **elsewhere(LEASE / 2))
    assert swept(catalog, job_id).status == JobStatus.RUNNING.value
    with pytest.raises(JobRunning, match="if its machine was stopped, ask again in 90 s"):
        opened(catalog)


@pytest.mark.parametrize("heartbeat", [True, False])
def test_a_job_of_another_machine_that_fell_silent_does_not_keep_the_work_from_being_started(
    catalog: Catalog, heartbeat: bool
) -> None:
    silent = elsewhere(LEASE + timedelta(seconds=5))
    if not heartbeat:  # of a release before it had one
        silent |= {"started_at": silent["heartbeat_at"], "heartbeat_at": None}
    dead = opened(catalog, **silent)
    second = opened(catalog)
    assert swept(catalog, dead).status == JobStatus.CRASHED.value
    assert swept(catalog, second).status == JobStatus.RUNNING.value


def test_a_job_at_work_on_this_machine_gives_signs_of_life_to_others(catalog: Catalog) -> None:
    job = swept(catalog, opened(catalog, heartbeat_at=now() - 2 * LEASE))
    assert job.status == JobStatus.RUNNING.value
    assert now() - (job.heartbeat_at or now() - LEASE) < LEASE / 2


def test_whoever_waits_for_a_process_says_itself_how_it_ended(catalog: Catalog) -> None:
    job_id = opened(catalog, process_id=NO_PROCESS)
    assert swept(catalog, job_id, job_id).status == JobStatus.RUNNING.value


def test_of_two_who_start_the_same_work_at_once_one_is_refused(catalog: Catalog) -> None:
    with ThreadPoolExecutor(1) as other:
        with catalog.write() as session:
            first = jobs.open_job(session, "run", "archive", "ada")
            second = other.submit(opened, catalog)
            wait([second], timeout=0.3)
        with pytest.raises(JobRunning, match=f"job {first.id} does this already"):
            second.result(timeout=60)


def test_of_two_who_send_the_same_write_at_once_the_second_is_told_that_it_is_at_work(catalog: Catalog) -> None:
    def begin() -> Known | None:
        with catalog.write() as session:
            return idempotency.begin(session, "ada", "key", "digest")

    with ThreadPoolExecutor(1) as other:
        with catalog.write() as session:
            assert idempotency.begin(session, "ada", "key", "digest") is None
            second = other.submit(begin)
            wait([second], timeout=0.3)
        assert second.result(timeout=60) == Known("digest", None, None, None)
