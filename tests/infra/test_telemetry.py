import os
import subprocess
import sys

import pytest

from infra.telemetry import SILENCE

PROBES = {
    "prefect client": "from prefect._internal.analytics.enabled import is_telemetry_enabled as on; on = on()",
    "prefect server": "from prefect.settings import get_current_settings; on = get_current_settings().server.analytics_enabled",
    "ray": "from ray._common.usage.usage_lib import usage_stats_enabled as on; on = on()",
    "mlflow": "from mlflow.telemetry.utils import is_telemetry_disabled as off; on = not off()",
}
# Continuous integration alone silences some of them, and would hide that we do not.
CI = {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"}


def telemetry_is_on(library: str, first: str, **environment: str) -> bool:
    inherited = {name: value for name, value in os.environ.items() if name not in CI | SILENCE.keys()}
    code = f"{first}\n{PROBES[library]}\nprint(on)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("library", PROBES)
def test_silence_reaches_the_library(library: str) -> None:
    assert telemetry_is_on(library, first="")
    assert not telemetry_is_on(library, first="from infra.telemetry import silence; silence()")


def test_silence_respects_what_the_user_has_set() -> None:
    silenced = "from infra.telemetry import silence; silence()"
    assert telemetry_is_on("ray", first=silenced, RAY_USAGE_STATS_ENABLED="1")
