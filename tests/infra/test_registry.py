"""Versions and aliases in a real MLflow registry on SQLite."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import infra.registry
from infra.registry import CHALLENGER, CHAMPION, Registry


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture(scope="module")
def registry(uri: str) -> Registry:
    return Registry(uri)


def test_same_digest_is_one_version_and_another_digest_the_next(registry: Registry) -> None:
    assert registry.register("a", "https://example.org", "1" * 64, {"licence": "MIT"}) == 1
    assert registry.register("a", "https://example.org", "1" * 64, {"licence": "MIT"}) == 1
    assert registry.register("a", "https://example.org", "2" * 64, {"licence": "MIT"}) == 2
    assert registry.register("b", "https://example.org", "1" * 64, {}) == 1
    assert [(v.name, v.version, v.digest[0]) for v in registry.versions("a")] == [("a", 1, "1"), ("a", 2, "2")]


def test_tags_follow_what_is_known_now(registry: Registry) -> None:
    registry.register("tags", "https://example.org", "1" * 64, {"licence": "MIT", "paper": "arXiv:1"})
    registry.register("tags", "https://example.org", "1" * 64, {"licence": "BSD-3-Clause"})
    (version,) = registry.versions("tags")
    assert version.tags == {"licence": "BSD-3-Clause", "paper": "arXiv:1", "digest": "1" * 64}


def test_an_alias_points_to_one_version_at_a_time(registry: Registry) -> None:
    first, second = (registry.register("aliases", "https://example.org", digit * 64, {}) for digit in "12")
    assert registry.at("aliases", CHAMPION) is None
    registry.point("aliases", CHAMPION, first)
    registry.point("aliases", CHALLENGER, second)
    assert [v.aliases for v in registry.versions("aliases")] == [(CHAMPION,), (CHALLENGER,)]
    registry.point("aliases", CHAMPION, second)
    champion = registry.at("aliases", CHAMPION)
    assert champion is not None
    assert champion.version == second
    assert [v.aliases for v in registry.versions("aliases")] == [(), (CHALLENGER, CHAMPION)]


def test_unknown_model_has_neither_versions_nor_champion(registry: Registry) -> None:
    assert registry.versions("nobody") == []
    assert registry.at("nobody", CHAMPION) is None


def test_another_opening_sees_the_same(registry: Registry, uri: str) -> None:
    registry.register("shared", "https://example.org", "3" * 64, {})
    assert [v.digest for v in Registry(uri).versions("shared")] == ["3" * 64]


def test_all_versions_are_listed_by_name_and_number(registry: Registry) -> None:
    listed = [(v.name, v.version) for v in registry.versions()]
    assert listed == sorted(listed)


def opened(uri: str, *more: str) -> subprocess.CompletedProcess[str]:
    program = f"from infra.registry import Registry; print(len(Registry({uri!r}).versions()))"
    root = Path(infra.registry.__file__).parents[1]
    return subprocess.run([sys.executable, "-c", program, *more], cwd=root, capture_output=True, text=True, check=False)


def test_processes_that_create_the_database_at_once_all_succeed_silently(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(opened, [uri] * 2))
    assert [(done.returncode, done.stdout, done.stderr) for done in results] == [(0, "0\n", "")] * 2
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_opening_leaves_the_application_s_logging_alone(tmp_path: Path) -> None:
    before = (logging.root.level, list(logging.root.handlers))
    Registry(f"sqlite:///{tmp_path}/mlflow.db")
    assert (logging.root.level, list(logging.root.handlers)) == before
