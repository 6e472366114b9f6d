"""A whole PostgreSQL of this machine, with the extensions that Prefect's server wants and the one in our packages lacks."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = Path("/usr/lib/postgresql")  # Debian's place; a folder for each version


@contextmanager
def full_postgresql(database: str) -> Iterator[str]:
    """Run a server on a socket only, with an empty database; gives its folder. Skips the test where none is installed."""
    found = sorted(PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parents[1].name))
    if not found:
        pytest.skip(f"no PostgreSQL in {PROGRAMS} (Debian's packages postgresql and postgresql-contrib)")
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="visage-fullpg-"))  # not under pytest's, which other users cannot enter
    as_user: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        # Without pipes: the server would keep them open.
        subprocess.run([*as_user, programs / program, *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    try:
        run("initdb", "--pgdata", data, "--auth", "trust", "--username", "prefect", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        run("pg_ctl", "start", "--pgdata", data, "--wait", "--log", str(folder / "log"), "--options", options)
        try:
            run("createdb", "--host", str(folder), "--username", "prefect", database)
            yield str(folder)
        finally:
            run("pg_ctl", "stop", "--pgdata", data, "--mode", "immediate")
    finally:
        shutil.rmtree(folder)
