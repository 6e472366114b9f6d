"""Nothing about a user, a machine or a collection leaves it unasked: the libraries' usage statistics are off."""

import os

# Everything in our dependency tree that calls home, by the variable that its source reads.
SILENCE = {
    "DO_NOT_TRACK": "1",  # Prefect's client, MLflow
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def silence() -> None:
    """Switch the libraries' telemetry off, for this process and its children. Call before importing them.

    A variable that the user has set stays as it is.
    """
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
