"""Shared test set-up."""

import pytest
import torch
from hypothesis import settings

pytest_plugins = (
    "tests.s3",
    "tests.weights",
    "tests.prefect_database",
    "tests.web",
    "tests.archive",
    "tests.catalogs",
    "tests.browser",
    "tests.crashes.postgresql",
)

settings.register_profile("visage", deadline=None, max_examples=30)  # a busy machine is not a failure
settings.register_profile("thorough", settings.get_profile("visage"), max_examples=300)  # make test-long
settings.load_profile("visage")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where torch has none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU, or this torch is a build without CUDA")
