"""Random requests by the API's own description: no crash, and every answer as described."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from flows.service.client import Client
from flows.service.limits import Rate, Rates
from infra.settings import Settings
from tests.serving import kill, serving

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(1_000_000, 1_000_000)] * 3)
EXAMPLES = 2  # of each operation
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


def test_every_request_gets_an_answer_as_described(own: Settings) -> None:
    with serving(own, rates=GENEROUS) as url:
        described = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")
        operations = [operation.ok() for operation in described.get_all_operations()]
        assert len(operations) > 50
        for operation in operations:
            request(operation)


def test_what_starts_work_and_what_changes_models_answer_as_described_when_they_do_it(own: Settings) -> None:
    """Names at random are refused: these are the ones that are there."""
    with serving(own, rates=GENEROUS) as url, Client(url) as client:
        described = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")

        def send(operation_id: str, **parts: object) -> int:
            case = described.find_operation_by_id(operation_id).Case(path_parameters=parts)
            return int(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

        assert send("start_run", name="archive") == 202
        assert send("start_run", name="archive") == 409  # while that one is at work
        kill(own, 1)
        (*_, job) = client.watch_job(1)
        assert (job.status, job.subject) == ("failed", "archive")
        assert send("promote_version", name="mini-xception", version=1) == 200
        assert send("promote_version", name="mini-xception", version=2) == 404
        assert send("rollback_model", name="dlib-resnet") == 404


def test_what_a_write_takes_and_answers_besides_its_body_is_described(own: Settings) -> None:
    with serving(own, rates=GENEROUS) as url:
        schema = httpx.get(f"{url}/api/v1/openapi.json").json()
        answer = httpx.post(f"{url}/api/v1/collections", json={"colour": "red"}).json()
    paths = schema["paths"]
    for path, how in (
        ("/collections", "post"),
        ("/identities/{identity_id}/name", "put"),
        ("/schedules/{name}", "delete"),
    ):
        assert "Idempotency-Key" in [p["name"] for p in paths[f"/api/v1{path}"][how]["parameters"]]
    assert "Idempotency-Key" not in str(paths["/api/v1/collections"]["get"])
    for path, status in (("/collections", "201"), ("/collections/{name}/runs", "202"), ("/upgrade/backfill", "202")):
        assert "Location" in paths[f"/api/v1{path}"]["post"]["responses"][status]["headers"]
    problem = schema["components"]["schemas"]["ProblemOut"]["properties"]
    assert answer.keys() <= problem.keys()
    assert answer["errors"][0].keys() == schema["components"]["schemas"]["FieldErrorOut"]["properties"].keys()


def request(operation: schemathesis.APIOperation) -> None:
    """Send some random requests of one kind."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    send()
