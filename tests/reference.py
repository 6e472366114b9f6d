"""Where the reference material lies (facts, goldens, real faces), and a skip that says so where it does not."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(relative: str) -> Path:
    """Return a path under ../shared, or skip the test with the reason."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs the reference material ../shared/{relative}, which is not on this machine")
    return path


def seeded() -> ModuleType:
    """Return the reference's module of seeded weights and inputs (seeded_state_dict, seeded_tensor, seeded_image)."""
    location = importlib.util.spec_from_file_location("seeded_weights", shared("reference/seeded_weights.py"))
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module
