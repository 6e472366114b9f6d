"""The one long-lived process: `visage serve-schedules`. It keeps Prefect in step with the catalog and runs what is due.

Prefect has its own idea of what was missed (everything, all at once, the newest first) and may lose a ring or ring late. So it
is only the bell: what is due is asked of the catalog, here every few seconds and in the flow that the bell starts, and a time
that Prefect did not ring for is rung from here.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from filelock import FileLock, Timeout

from infra import prefect_server
from infra.catalog.custody import keyed
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Schedule
from infra.catalog.work import schedules
from infra.metrics import serve_metrics
from infra.prefect_server import ServerUnavailable
from infra.settings import Settings
from infra.words import count
from tasks.nights.problems import NotTold, tell_problems
from tasks.nights.schedules import ON_TIME, Due, due, give_up

LOOK_SECONDS = 10.0  # how often the catalog is looked at
TELL_SECONDS = 30.0
PATIENCE = timedelta(seconds=90)  # with Prefect's bell, before we ring ourselves
Terms = tuple[str, str]


class AlreadyServed(RuntimeError):
    """Another process serves the schedules of this home."""


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve the schedules until told to stop (SIGTERM, SIGINT); `say` hears what happens.

    Raises:
        AlreadyServed: if another process of this machine does so for the same home.
        ServerUnavailable: if the local Prefect server has gone away. Whoever supervises this process starts it again.
    """
    settings.home_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.home_folder / "schedules.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise AlreadyServed(
            f"another process serves the schedules of {settings.home_folder} already; one is enough"
        ) from error
    with lock, closing(Catalog(settings.catalog_url)) as catalog:
        url = prefect_server.use(settings.home_folder)
        if settings.metrics_port:
            serve_metrics(catalog, settings.metrics_host, settings.metrics_port)
            say(f"metrics at http://{settings.metrics_host}:{settings.metrics_port}/metrics")
        asyncio.run(_Server(settings, catalog, url, say).run())


@dataclass
class _Server:
    settings: Settings
    catalog: Catalog
    url: str
    say: Callable[[str], None]
    served: dict[str, tuple[Terms, UUID]] = field(default_factory=dict)
    rung: dict[int, tuple[Due, datetime]] = field(default_factory=dict)
    told_at: float = -math.inf

    async def run(self) -> None:
        from prefect.runner import Runner  # noqa: PLC0415 - Prefect reads its settings when imported

        # Nothing is paused when this process ends, and no run waits for another of a different collection.
        runner: Any = Runner(name="visage schedules", pause_on_shutdown=False, limit=None)
        await self._forget_former()
        await self._keep_in_step(runner)
        await self._ring()
        self.say(f"serving {count(len(self.served), 'schedule')}, with Prefect at {self.url}")
        told_to_stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        runner.handle_sigterm = lambda *_: loop.call_soon_threadsafe(told_to_stop.set)  # its own forgets to await
        running = asyncio.create_task(runner.start())
        stopping = asyncio.create_task(told_to_stop.wait())
        while not (running.done() or stopping.done()):
            await asyncio.wait([running, stopping], timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                self._check_server()
                await self._keep_in_step(runner)
                await self._ring()
                await self._tell()
        if stopping.done():
            self.say("told to stop: runs that are at work are ended; the next ones go on from there")
            await runner.astop()
        await running

    def _check_server(self) -> None:
        if "PREFECT_API_AUTH_STRING" not in os.environ:  # no local server of ours
            return
        server = prefect_server.status(self.settings.home_folder)
        if server is None or server.url != self.url:
            raise ServerUnavailable(f"The local Prefect server at {self.url} has gone; start serve-schedules again.")

    async def _keep_in_step(self, runner: Any) -> None:
        """Bring Prefect's deployments in line with the catalog's schedules."""
        from prefect.schedules import Cron  # noqa: PLC0415

        from flows.scheduled import scheduled  # noqa: PLC0415

        with self.catalog.read() as session:
            wanted = {row.name: (row.cron, row.timezone) for row, _ in schedules.every(session) if not row.paused}
        for name in self.served.keys() - wanted.keys():
            await self._delete(self.served.pop(name)[1])
            self.say(f"no longer serving {name}")
        for name, terms in wanted.items():
            if name in self.served and self.served[name][0] == terms:
                continue
            deployment: Any = await scheduled.ato_deployment(
                f"{name} {self._tag}",
                schedule=Cron(terms[0], timezone=terms[1]),
                parameters={"schedule": name},
                tags=["visage", self._tag],
                entrypoint_type=_module_path(),
            )
            self.served[name] = terms, await runner.aadd_deployment(deployment)
            self.say(f"serving {name}: {terms[0]} {terms[1]}")

    async def _forget_former(self) -> None:
        """Remove deployments of schedules that the catalog no longer has, and runs that Prefect has piled up meanwhile."""
        from prefect import get_client  # noqa: PLC0415
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags  # noqa: PLC0415

        async with get_client() as client:
            ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["visage", self._tag]))
            for deployment in await client.read_deployments(deployment_filter=ours):
                await client.delete_deployment(deployment.id)

    @cached_property
    def _tag(self) -> str:
        """What tells deployments of this catalog from those of others on the same Prefect server."""
        with self.catalog.write() as session:
            return keyed.digest(keyed.secret(session, "prefect"))[:8]

    async def _delete(self, deployment: UUID) -> None:
        from prefect import get_client  # noqa: PLC0415
        from prefect.exceptions import ObjectNotFound  # noqa: PLC0415

        async with get_client() as client:
            with suppress(ObjectNotFound):
                await client.delete_deployment(deployment)

    async def _ring(self) -> None:
        """Ring for what is due and was not rung for; write down what has been missed."""
        for row, found in self._due():
            if not found.on_time and not row.catch_up:
                if give_up(self.catalog, row, found):
                    self.say(f"{row.name} has missed {found.slot.at:%Y-%m-%d %H:%M} UTC")
                continue
            rung = self.rung.get(row.id)
            if rung is None or rung[0].slot != found.slot:
                if found.on_time and found.late < PATIENCE:
                    continue
                await self._start(row.name)
                self.rung[row.id] = found, datetime.now(UTC)
                self.say(f"starting {row.name} for {found.slot.at:%Y-%m-%d %H:%M} UTC")
            elif datetime.now(UTC) - rung[1] > ON_TIME and give_up(self.catalog, row, found):
                self.say(f"{row.name} could not be started for {found.slot.at:%Y-%m-%d %H:%M} UTC")

    async def _tell(self) -> None:
        """Tell whoever wants to know of nights that were not good; after a failure, again a little later."""
        if time.monotonic() - self.told_at < TELL_SECONDS:
            return
        self.told_at = time.monotonic()
        try:
            for told in await asyncio.to_thread(list, tell_problems(self.settings, self.catalog)):
                self.say(f"problem: {told}")
        except NotTold as error:
            self.say(f"nobody could be told of a problem: {error}")

    def _due(self) -> list[tuple[Schedule, Due]]:
        now = datetime.now(UTC)
        with self.catalog.read() as session:
            found = [(row, due(session, row, now)) for row, _ in schedules.every(session)]
        return [(row, what) for row, what in found if what is not None and row.name in self.served]

    async def _start(self, name: str) -> None:
        from prefect import get_client  # noqa: PLC0415

        async with get_client() as client:
            await client.create_flow_run_from_deployment(self.served[name][1])


def _module_path() -> Any:
    from prefect.deployments.runner import EntrypointType  # noqa: PLC0415

    return EntrypointType.MODULE_PATH
