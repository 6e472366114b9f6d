"""A bucket behind a bad network: what passes is tried again, a bounded number of times, what lasts is told at once."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from infra.storage import (
    AccessDenied,
    ObjectChanged,
    ObjectMissing,
    S3Options,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from infra.storage import s3 as implementation
from infra.storage.s3 import ATTEMPTS, S3
from tests.proxy import STALL, Fault, Proxy, proxy_before

DATA = b"picture " * 1000
PASSING = ("500", "slow down", "reset", "stall", "truncated", "stalled body")
WAITING = 0.8  # seconds that the client waits for an answer here, where a stall lasts longer


@pytest.fixture
def proxy(s3_options: S3Options, bucket: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    assert WAITING < STALL
    bucket.exists("the usual patience where no proxy is between")
    monkeypatch.setattr(implementation, "READ_TIMEOUT", WAITING)
    for pausing in ("botocore.endpoint.time", "tenacity.nap.time"):
        monkeypatch.setattr(pausing, SimpleNamespace(sleep=lambda seconds: None))
    with proxy_before(s3_options) as running:
        yield running


@pytest.fixture
def store(proxy: Proxy, bucket: S3) -> S3:
    """The bucket, as it is reached through the proxy; it holds one photograph."""
    bucket.put("a.jpg", DATA, "image/jpeg")
    return S3(bucket.bucket, options=proxy.options)


@pytest.mark.parametrize("kind", PASSING)
def test_reading_survives_what_passes(store: S3, proxy: Proxy, kind: str) -> None:
    times = 1 if kind.startswith("stall") else ATTEMPTS - 1
    proxy.faults.append(Fault(kind, times=times))
    assert store.read("a.jpg", 10**6).data == DATA
    assert proxy.met == [kind] * times


@pytest.mark.parametrize("kind", ["500", "slow down", "reset", "stall"])
def test_writing_survives_what_passes_and_writes_the_whole_object(
    store: S3, bucket: S3, proxy: Proxy, kind: str
) -> None:
    times = 1 if kind == "stall" else ATTEMPTS - 1
    proxy.faults.append(Fault(kind, "PUT", times=times))
    store.put("crop.jpg", DATA, "image/jpeg")
    assert proxy.met == [kind] * times
    assert bucket.read("crop.jpg", 10**6).data == DATA


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind.startswith("stall") else kind for kind in PASSING],
)
def test_what_does_not_pass_is_given_up_after_a_bounded_number_of_attempts(store: S3, proxy: Proxy, kind: str) -> None:
    proxy.faults.append(Fault(kind, times=100))
    with pytest.raises(StoreUnavailable, match=r"a\.jpg") as raised:
        store.read("a.jpg", 10**6)
    assert raised.value.retryable
    assert len(proxy.met) == ATTEMPTS


@pytest.mark.parametrize(
    ("kind", "method", "error", "said"),
    [
        ("expired", "GET", AccessDenied, "Renew the credentials"),
        ("expired as AWS says it", "GET", AccessDenied, "Renew the credentials"),
        ("expired", "PUT", AccessDenied, "Renew the credentials"),
        ("full", "PUT", StoreFull, "Free some room"),
    ],
)
def test_what_lasts_is_told_at_once(
    store: S3, proxy: Proxy, kind: str, method: str, error: type[StoreError], said: str
) -> None:
    proxy.faults.append(Fault(kind, method, times=100))
    with pytest.raises(error, match=said):
        store.read("a.jpg", 10**6) if method == "GET" else store.put("a.jpg", DATA, "image/jpeg")
    assert len(proxy.met) == 1


def test_an_object_under_another_etag_than_listed_is_not_passed_off_as_that(store: S3, proxy: Proxy) -> None:
    ((entry,),) = store.list()
    proxy.faults.append(Fault("wrong etag"))
    with pytest.raises(ObjectChanged):
        store.read("a.jpg", 10**6, entry.etag)
    assert store.read("a.jpg", 10**6, entry.etag).data == DATA


def test_an_object_that_vanishes_between_listing_and_reading_is_missing(store: S3, bucket: S3, proxy: Proxy) -> None:
    ((entry,),) = store.list()
    proxy.faults.append(Fault("vanish", path="a.jpg", act=lambda: bucket.delete("a.jpg")))
    with pytest.raises(ObjectMissing):
        store.read("a.jpg", 10**6, entry.etag)
    assert [*store.list()] == []
