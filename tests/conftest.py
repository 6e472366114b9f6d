"""Shared test set-up."""

from hypothesis import settings

settings.register_profile("visage", deadline=None)  # a busy machine is not a failure
settings.load_profile("visage")
