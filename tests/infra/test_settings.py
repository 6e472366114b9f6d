"""Settings are read once at the edge: validated, and unknown ones refused."""

import os
from pathlib import Path

import pytest

from infra.settings import PREFIX, InvalidSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def test_without_any_variable_everything_lies_in_the_home_folder() -> None:
    settings = load_settings()
    home = Path("~/.visage").expanduser()
    assert settings.catalog_url == f"sqlite:///{home}/catalog.db"
    assert settings.mlflow_uri == f"sqlite:///{home}/mlflow.db"
    assert settings.crops_uri == str(home / "objects")
    assert settings.artifacts_folder == home / "artifacts"
    assert settings.cpu_count == len(os.sched_getaffinity(0))


def test_a_user_without_a_name_acts_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # as in a container: no entry in passwd
    assert load_settings().acting == "uid 54321"


def test_variables_are_read_with_their_types(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "HOME": "here", "CPUS": "3", "ENGINE": "ray", "DESCRIBE_MODELS": '["mini-xception"]', "MAX_MEGAPIXELS": "12.5",
        "DATABASE_URL": "postgresql+psycopg://db/visage", "RESTORE_MODEL": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(PREFIX + name, value)
    settings = load_settings()
    assert settings.home_folder == tmp_path / "here"  # relative to where the command runs, and absolute from then on
    assert (settings.cpu_count, settings.engine, settings.max_megapixels) == (3, "ray", 12.5)
    assert settings.describe_models == ("mini-xception",)
    assert settings.catalog_url == "postgresql+psycopg://db/visage"
    assert settings.restore_model == ""


@pytest.mark.parametrize("name", ["VISAGE_WEIGTHS", "VISAGE_FASTEST"])
def test_an_unknown_variable_is_refused_by_name_with_those_there_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "/weights")
    with pytest.raises(InvalidSettings, match=rf"{name}; known: .*VISAGE_WEIGHTS"):
        load_settings()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CPUS": "many"}, r"VISAGE_CPUS='many': .*integer"),
        ({"CPUS": "-1"}, r"VISAGE_CPUS='-1': .*greater than or equal to 0"),
        ({"ENGINE": "spark"}, r"VISAGE_ENGINE='spark': .*'auto', 'ray' or 'inline'"),
        ({"MAX_MEGAPIXELS": "0"}, r"VISAGE_MAX_MEGAPIXELS='0': .*greater than 0"),
        ({"CPUS": "x", "ENGINE": "y"}, r"VISAGE_ENGINE='y'.*; VISAGE_CPUS='x'"),
        ({"DESCRIBE_MODELS": "mini-xception"}, r"describe_models.*a list is written as JSON"),
        ({"S3_ENDPOINT_URL": "minio:9000"}, r"'minio:9000' is no URL"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(InvalidSettings, match=message):
        load_settings()


def test_half_a_pair_of_credentials_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISAGE_S3_SECRET_KEY", "do-not-print-me")
    with pytest.raises(InvalidSettings, match="go together") as refused:
        load_settings()
    assert "do-not-print-me" not in str(refused.value)


def test_the_secret_key_is_not_shown_with_the_settings() -> None:
    settings = Settings(s3_access_key="access", s3_secret_key="do-not-print-me")  # type: ignore[arg-type]
    assert "do-not-print-me" not in f"{settings} {settings!r} {settings.storage_options}"
    assert settings.storage_options.secret_key == "do-not-print-me"
