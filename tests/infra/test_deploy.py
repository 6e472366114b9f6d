"""The deployment files fit the code that they deploy: its settings, its commands, its flows, its image."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli.app import app
from infra.settings import PREFIX, Settings

FOLDER = Path(__file__).parents[2] / "infra" / "deploy"
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `visage ...` that some file starts."""
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for service in compose["services"].values():
        yield "compose.yaml", service.get("command", [])
    for document in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text()):
        for container in document["spec"].get("template", {}).get("spec", {}).get("containers", []):
            yield "kuberay.yaml", container["command"]
    for unit in FOLDER.glob("*.service"):
        for line in re.findall(r"^Exec\w+=-?(.*)$", unit.read_text(), re.MULTILINE):
            yield unit.name, ["visage", *shlex.split(line)[1:]]


def test_every_setting_that_a_file_names_is_one_of_ours() -> None:
    for path in FOLDER.iterdir():
        assert set(re.findall(r"\bVISAGE_[A-Z0-9_]+\b", path.read_text())) <= KNOWN, path.name


@pytest.mark.parametrize(("file", "command"), [(f, c) for f, c in commands() if c[:1] == ["visage"]])
def test_every_command_that_a_file_starts_exists_with_its_options(file: str, command: list[str]) -> None:
    words = command[1:]
    found: Any = typer.main.get_command(app)
    context = found.make_context("visage", words, resilient_parsing=True)
    while hasattr(found, "commands"):
        _, found, words = found.resolve_command(context, words)
        assert found is not None, (file, command)
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options


def test_prefects_deployments_name_flows_that_are_there_with_their_parameters() -> None:
    prefect = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
    for deployment in prefect["deployments"]:
        file, _, name = deployment["entrypoint"].partition(":")
        flow = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
        assert set(deployment["parameters"]) <= set(flow.parameters.properties)


def test_the_image_holds_all_packages_and_what_pip_needs() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", (FOLDER / "Containerfile").read_text(), re.MULTILINE)
    assert {"models", "infra", "tasks", "flows", "pyproject.toml", "constraints.txt"} <= {
        word for line in copied for word in line.split()
    }


def test_no_file_holds_a_secret() -> None:
    example = (FOLDER / ".env.example").read_text()
    assert all(line.endswith("=") for line in example.splitlines() if line and not line.startswith("#"))
    for variable in re.findall(r"\$\{(\w+)[:}]", (FOLDER / "compose.yaml").read_text()):
        assert f"{variable}=" in example
