"""Jobs in the catalog belong to processes, and processes to a machine."""

import pytest
from sqlalchemy import update

from infra.catalog import jobs
from infra.catalog.database import Catalog
from infra.catalog.service_tables import Job, JobStatus


@pytest.mark.parametrize(("elsewhere", "closed"), [(False, True), (True, False)])
def test_only_jobs_whose_process_numbers_mean_something_here_are_closed_as_dead(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, elsewhere: bool, closed: bool
) -> None:
    with catalog.write() as session:
        job_id = jobs.open_job(session, "run", "archive", "ada").id
        session.execute(update(Job).values(process_id=2**22 + 1))  # above any process number
    if elsewhere:  # another container of the same host name
        monkeypatch.setattr(jobs, "host", lambda: "a-host pid:[2]")
    with catalog.write() as session:
        jobs.close_dead(session)
        assert (session.get_one(Job, job_id).status == JobStatus.CRASHED.value) is closed
