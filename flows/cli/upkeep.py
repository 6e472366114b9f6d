"""`visage doctor` and `visage down`: is this machine ready, and stopping what runs in the background."""

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import typer

from flows.cli.output import Json, console, literal, print_json
from infra.settings import Settings, load_settings

MIN_FREE_BYTES = 2 * 2**30
MIN_MEMORY_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do where it is not well."""

    what: str
    well: bool
    found: str
    mend: str = ""


def doctor(as_json: Json = False) -> None:
    """Say what is missing on this machine and how to mend it. Exit code 1 if something is."""
    settings = load_settings()
    checks: list[Callable[[Settings], Finding]] = [
        _python,
        _packages,
        _memory,
        _disk,
        _home,
        _models,
        _catalog,
        _device,
    ]
    findings = [_looked_at(check, settings) for check in checks]
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            mark = "[green]ok[/] " if finding.well else "[red]bad[/]"
            console.print(mark, literal(f"{finding.what}: {finding.found}"))
            if not finding.well:
                console.print(literal(f"     -> {finding.mend}"))
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


def _looked_at(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except Exception as error:
        return Finding(
            check.__name__.strip("_"), False, f"{type(error).__name__}: {error}", "mend what this error names"
        )


def _python(_: Settings) -> Finding:
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    well = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding("Python", well, version, "use Python 3.11, 3.12 or 3.13")


def _packages(_: Settings) -> Finding:
    required = {"fastapi": (0, 154), "sqlalchemy": (2, 1)}
    broken = []
    for name, limit in required.items():
        version = importlib.metadata.version(name)
        if tuple(int(part) for part in version.split(".")[:2]) >= limit:
            broken.append(f"{name} {version}")
    found = ", ".join(broken) or f"Prefect {importlib.metadata.version('prefect')} with packages that suit it"
    return Finding("packages", not broken, found, "'pip install -c constraints.txt -e .' brings tested versions back")


def _memory(_: Settings) -> Finding:
    import psutil  # noqa: PLC0415

    free = psutil.virtual_memory().available
    mend = "close other programs, or lower VISAGE_CPUS; the pipeline with Ray needs about 3 GB"
    return Finding("free memory", free >= MIN_MEMORY_BYTES, f"{free / 2**30:.1f} GB", mend)


def _disk(settings: Settings) -> Finding:
    folder = settings.home_folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    mend = f"free some room, or set VISAGE_HOME to another disk than that of {folder}"
    return Finding("free disk", free >= MIN_FREE_BYTES, f"{free / 2**30:.1f} GB at {settings.home_folder}", mend)


def _home(settings: Settings) -> Finding:
    try:
        settings.home_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home_folder):
            pass
    except OSError as error:
        return Finding("home folder", False, str(error), "make it writable, or set VISAGE_HOME to a folder that is")
    return Finding("home folder", True, str(settings.home_folder))


def _models(settings: Settings) -> Finding:
    from tasks.model_version import NotInstalled  # noqa: PLC0415 - imports torch
    from tasks.recipe import current_recipe  # noqa: PLC0415

    try:
        versions = current_recipe(settings, frozenset()).versions
    except NotInstalled as error:
        return Finding("models", False, str(error), "run 'visage models install'")
    return Finding("models", True, ", ".join(f"{version.name}@{version.version}" for version in versions))


def _catalog(settings: Settings) -> Finding:
    from infra.catalog.database import Catalog  # noqa: PLC0415

    catalog = Catalog(settings.catalog_url)
    location = catalog.engine.url.render_as_string(hide_password=True)
    catalog.close()
    return Finding("catalog", True, location)


def _device(_: Settings) -> Finding:
    import torch  # noqa: PLC0415

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return Finding("device", True, gpu or f"CPU, {torch.get_num_threads()} threads (no GPU: slower, same results)")


def down(as_json: Json = False) -> None:
    """Stop the local Prefect server that 'visage run' leaves running for the next time."""
    from infra import prefect_server  # noqa: PLC0415

    stopped = prefect_server.stop(load_settings().home_folder)
    if as_json:
        print_json({"stopped": stopped})
        return
    console.print("stopped the local Prefect server" if stopped else "no local Prefect server is running")
