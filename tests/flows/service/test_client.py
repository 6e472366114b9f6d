"""The typed client against a running service: it reaches everything that there is, and reads every answer."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.service.client import Client, ServiceProblem
from flows.service.limits import Rate, Rates
from flows.service.orders import (
    CollectionChange,
    CollectionIn,
    ErasureIn,
    ErasureOrder,
    RemovalOrder,
    RetryIn,
    ScheduleIn,
)
from infra.settings import Settings
from tests.serving import serving

GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)


@pytest.fixture(scope="module")
def client(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service whose catalog is empty."""
    home = tmp_path_factory.mktemp("home")
    shutil.copyfile(empty_registry, home / "mlflow.db")
    with serving(Settings(home=home), rates=GENEROUS) as url, Client(url) as client:
        yield client


def calls(client: Client, folder: str) -> list[Callable[[], Any]]:
    """Each of the client's methods once; where there is nothing yet, the service says so."""
    order = ErasureOrder(faces=[1], digest="0" * 64, word="erase", reason="a test")
    schedule = ScheduleIn(name="nightly", collection="archive", cron="0 2 * * *")
    run = "0" * 32
    return [
        client.health, client.ready, client.me, client.status, client.metrics, client.collections,
        lambda: client.add_collection(CollectionIn(name="archive", uri=folder)), lambda: client.collection("archive"),
        lambda: client.start_run("nowhere"), lambda: list(client.images()), lambda: client.image(1),
        lambda: client.picture(1), lambda: list(client.faces()), lambda: client.face(1), lambda: client.crop(1),
        lambda: client.restored(1), lambda: client.neighbours(1), lambda: client.search(b"no picture"),
        lambda: list(client.identities()), lambda: client.identity(1), lambda: client.name(1, "Ada"),
        lambda: client.decide(1, "confirm", [1]), lambda: client.decide(1, "reject", [1]), lambda: client.split([1]),
        lambda: client.merge(1, 2), lambda: client.ignore(1), lambda: client.ignore_faces([1]),
        lambda: list(client.proposals()),
        lambda: client.answer(1, 2, same=True), lambda: client.answer(1, 2, same=False), lambda: list(client.decisions()),
        lambda: client.undo(1), lambda: list(client.runs()), lambda: client.run(1), lambda: client.progress(1),
        lambda: list(client.watch_run(1)), lambda: list(client.failures()), lambda: client.retry(RetryIn()),
        lambda: list(client.jobs()), lambda: client.job(1), lambda: list(client.watch_job(1)), client.schedules,
        lambda: client.add_schedule(schedule), lambda: client.pause_schedule("nightly"),
        lambda: client.resume_schedule("nightly"), lambda: client.remove_schedule("nightly"), client.models,
        lambda: client.model("dlib-resnet"), lambda: client.promote("dlib-resnet", 1),
        lambda: client.rollback("dlib-resnet"), client.upgrade, lambda: list(client.watch_upgrade()),
        client.start_backfill, lambda: list(client.evaluations()), lambda: client.evaluation(run), lambda: client.fairness(run),
        lambda: client.evaluation_file(run, "plot.png"), lambda: client.plan_erasure(ErasureIn(faces=[1])),
        lambda: client.plan_erasure_by_photo(b"no picture"), lambda: client.erase(order), lambda: list(client.erasures()),
        lambda: list(client.audit()), client.places, lambda: client.forget_place(1),
        lambda: client.change_collection("nowhere", CollectionChange(name="new")),
        lambda: client.plan_removal("nowhere"),
        lambda: client.remove_collection("nowhere", RemovalOrder(digest="0" * 64, word="remove")),
    ]  # fmt: skip


def test_the_client_reaches_every_operation_of_the_api(client: Client, tmp_path: Path) -> None:
    asked: set[tuple[str, str]] = set()
    client.http.event_hooks["request"] = [lambda request: asked.add((request.method.lower(), request.url.path))]
    for call in calls(client, str(tmp_path)):
        with suppress(ServiceProblem):
            call()
    client.http.event_hooks["request"] = []
    described = httpx.get(str(client.http.base_url.join("openapi.json"))).json()["paths"]
    missed = [
        (method, path)
        for path, operations in described.items()
        for method in operations
        if not any(how == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), where) for how, where in asked)
    ]
    assert missed == []


def test_a_schedule_is_added_rests_goes_on_and_is_removed(client: Client, tmp_path: Path) -> None:
    with suppress(ServiceProblem):
        client.add_collection(CollectionIn(name="archive", uri=str(tmp_path)))
    added = client.add_schedule(ScheduleIn(name="every-night.2", collection="archive", cron="0 2 * * *"))
    assert added.next_at is not None
    assert [schedule.name for schedule in client.schedules()] == ["every-night.2"]
    assert client.pause_schedule("every-night.2").next_at is None
    assert client.resume_schedule("every-night.2").next_at == added.next_at
    client.remove_schedule("every-night.2")
    assert client.schedules() == []
    with pytest.raises(ServiceProblem) as caught:
        client.add_schedule(ScheduleIn(name="never", collection="archive", cron="at night"))
    assert (caught.value.status, caught.value.kind) == (422, "schedule")


def test_what_has_not_begun_is_not_there_and_the_problem_says_what_would_begin_it(client: Client) -> None:
    for ask in (client.upgrade, client.start_backfill, lambda: client.rollback("dlib-resnet")):
        with pytest.raises(ServiceProblem) as caught:
            ask()
        assert caught.value.status == 404
    with pytest.raises(ServiceProblem, match="dlib-resnet has no version 7; there are: none"):
        client.promote("dlib-resnet", 7)
