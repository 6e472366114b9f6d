"""Shared test set-up."""

from hypothesis import settings

pytest_plugins = (
    "tests.s3",
    "tests.weights",
    "tests.web",
    "tests.archive",
    "tests.catalogs",
    "tests.browser",
    "tests.crashes.postgresql",
)

settings.register_profile("visage", deadline=None)  # a busy machine is not a failure
settings.load_profile("visage")
