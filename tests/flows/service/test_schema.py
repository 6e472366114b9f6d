"""Random requests by the API's own description: no crash, and every answer as described."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from flows.service.limits import Rate, Rates
from infra.settings import Settings
from tests.serving import serving

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(1_000_000, 1_000_000)] * 3)
# What starts another program, changes the registry that other tests share, or ends only with a run.
LEFT_OUT = ["start_run", "promote_version"]
EXAMPLES = 6


CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


def test_every_request_gets_an_answer_as_described(own: Settings) -> None:
    with serving(own, rates=GENEROUS) as url:
        described = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json").exclude(operation_id=LEFT_OUT)
        operations = [operation.ok() for operation in described.get_all_operations()]
        assert len(operations) > 40
        for operation in operations:
            request(operation)


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
