"""A night over bad storage, a full disk, and photos that hang does all that can be done, or says why it cannot."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from flows import night as steps
from flows.night import night
from infra.catalog.database import Catalog
from infra.catalog.faults import CatalogUnreachable
from infra.catalog.queries import views
from infra.catalog.tables.schema import Image, Run
from infra.settings import Settings
from infra.storage import AccessDenied, Folder, S3Options, StoreError, StoreFull, StoreMissing
from infra.storage.s3 import S3
from tasks import prepare
from tests.crashes.left import left
from tests.crashes.nights import archive
from tests.crashes.postgresql import Server
from tests.portraits import small_collection
from tests.proxy import Fault, Proxy, proxy_before
from tests.runs import add, run

pytestmark = pytest.mark.slow
KEYS = ("a.jpg", "b.jpg", "c/pair.jpg", "d.jpg", "z_copy_of_a.jpg")


@pytest.fixture
def settings(tmp_path: Path, weights_dir: Path, tracking_uri: str) -> Settings:
    return Settings(
        home=tmp_path / "home", weights=weights_dir, tracking_uri=tracking_uri, engine="inline", restore_model=""
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return small_collection(tmp_path / "photos")


@pytest.fixture
def proxy(s3_options: S3Options, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for pausing in ("botocore.endpoint.time", "tenacity.nap.time"):
        monkeypatch.setattr(pausing, SimpleNamespace(sleep=lambda seconds: None))
    with proxy_before(s3_options) as running:
        yield running


@pytest.fixture
def on_s3(settings: Settings, photos: Path, bucket: S3, proxy: Proxy, tmp_path: Path) -> Settings:
    """Settings of a home whose photographs and crops lie in a bucket behind the proxy."""
    for path in photos.rglob("*.jpg"):
        bucket.put(f"photos/{path.relative_to(photos)}", path.read_bytes(), "image/jpeg")
    changed = settings.model_copy(
        update={
            "home": tmp_path / "home of the bucket",
            "objects_uri": f"s3://{bucket.bucket}/crops",
            "s3_endpoint_url": proxy.options.endpoint,
            "s3_region": proxy.options.region,
            "s3_access_key": proxy.options.access_key,
            "s3_secret_key": SecretStr(proxy.options.secret_key or ""),
        }
    )
    add(changed, f"s3://{bucket.bucket}/photos")
    return changed


def latest(settings: Settings) -> Run:
    with Catalog(settings.catalog_url).read() as session:
        return session.scalars(select(Run).order_by(Run.id.desc()).limit(1)).one()


def statuses(settings: Settings) -> dict[str, str]:
    with Catalog(settings.catalog_url).read() as session:
        return dict(session.execute(select(Image.key, Image.status)).tuples().all())


def without_places(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rows.items() if name != "failures"}


def test_a_night_over_a_bad_network_leaves_the_same_as_one_over_a_folder(
    settings: Settings, photos: Path, on_s3: Settings, proxy: Proxy
) -> None:
    add(settings, photos)
    run(settings)
    reading = ("500", "slow down", "reset", "truncated", "500", "truncated", "reset")
    writing = ("500", "reset", "slow down", "500", "reset")
    proxy.faults = [Fault(kind, path="photos/") for kind in reading] + [Fault(kind, "PUT") for kind in writing]
    state = run(on_s3)
    assert sorted(proxy.met) == sorted(reading + writing)
    assert (state.tally.images, state.failed_images) == (5, 0)
    found = left(on_s3)
    assert found.problems == []
    assert found.differences(left(settings)) == []


def test_a_photo_that_vanishes_or_changes_on_the_way_fails_and_the_next_night_looks_again(
    on_s3: Settings, bucket: S3, proxy: Proxy
) -> None:
    proxy.faults = [
        Fault("vanish", path="/b.jpg", act=lambda: bucket.delete("photos/b.jpg")),
        Fault("wrong etag", path="/d.jpg"),
    ]
    assert run(on_s3).failed_images == 2
    with Catalog(on_s3.catalog_url).read() as session:
        reasons = {failure.key: failure.reason for failure in views.failures(session, "archive", None, 10)}
    assert reasons == {"b.jpg": "object_missing", "d.jpg": "object_changed"}
    assert run(on_s3).failed_images == 0
    assert statuses(on_s3) == dict.fromkeys(KEYS, "done") | {"b.jpg": "missing"}


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are read in groups of one, so that a store can fail between two."""
    monkeypatch.setattr(prepare, "GROUP", 1)
    monkeypatch.setattr(prepare, "CROPS", 1)


@pytest.mark.usefixtures("one_by_one")
def test_credentials_that_expire_end_the_night_and_leave_what_was_not_read_to_the_next(
    on_s3: Settings, proxy: Proxy
) -> None:
    def expire() -> None:
        proxy.faults = [Fault("nothing", path="photos/", times=2), Fault("expired", path="photos", times=1000)]

    with pytest.raises(AccessDenied, match="Renew the credentials"):
        run(on_s3, expire)
    assert "Renew the credentials" in (latest(on_s3).error or "")
    assert sorted(statuses(on_s3).values()) == ["done", "done", "pending", "pending", "pending"]
    proxy.faults.clear()
    state = run(on_s3)
    assert (state.tally.images, state.failed_images) == (3, 0)
    assert left(on_s3).problems == []


def test_a_store_without_room_for_crops_ends_the_night_with_nothing_half_written(on_s3: Settings, proxy: Proxy) -> None:
    proxy.faults = [Fault("nothing", "PUT", times=2), Fault("full", "PUT", times=1000)]
    with pytest.raises(StoreFull, match="Free some room"):
        run(on_s3)
    assert set(statuses(on_s3).values()) == {"pending"}
    proxy.faults.clear()
    assert run(on_s3).failed_images == 0
    assert left(on_s3).problems == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, as small as one likes, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_night_with_a_message_and_the_next_one_finishes(
    settings: Settings, photos: Path, small_disk: Path
) -> None:
    full = settings.model_copy(update={"home": small_disk})
    add(full, photos)
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(max(room.f_bavail * room.f_frsize - 150_000, 0)))
    with pytest.raises((StoreError, CatalogUnreachable), match=r"room|full"):
        run(full)
    (small_disk / "ballast").unlink()
    assert run(full).failed_images == 0
    assert left(full).problems == []


def test_photos_that_hang_time_out_and_their_neighbours_do_not(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decode = Folder.read, prepare.decode
    broken = (photos / "d.jpg").read_bytes()

    def hanging_read(self: Folder, key: str, *arguments: Any) -> Any:
        return threading.Event().wait() if key == "b.jpg" else read(self, key, *arguments)

    def hanging_decode(data: bytes, *arguments: Any, **options: Any) -> Any:
        return threading.Event().wait() if data == broken else decode(data, *arguments, **options)

    monkeypatch.setattr(Folder, "read", hanging_read)
    monkeypatch.setattr(prepare, "decode", hanging_decode)
    add(settings, photos)
    state = run(settings.model_copy(update={"item_seconds": 4.0}))
    assert dict(state.tally.failures) == {"read: timeout": 1, "decode: timeout": 1}
    assert statuses(settings) == dict.fromkeys(KEYS, "done") | {"b.jpg": "failed", "d.jpg": "failed"}


def test_photos_that_need_too_much_memory_are_tried_alone_and_only_then_fail_for_that_reason(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = prepare.decode
    once, always = (photos / "b.jpg").read_bytes(), (photos / "d.jpg").read_bytes()
    short = [once]

    def needing_much(data: bytes, *arguments: Any, **options: Any) -> Any:
        if data == always or data in short:
            short.clear()
            bytearray(2**62)
        return decode(data, *arguments, **options)

    monkeypatch.setattr(prepare, "decode", needing_much)
    add(settings, photos)
    assert dict(run(settings).tally.failures) == {"decode: out_of_memory": 1}
    assert statuses(settings) == dict.fromkeys(KEYS, "done") | {"d.jpg": "failed"}
    assert run(settings).tally.images == 0


@pytest.mark.long
def test_a_night_goes_on_when_its_database_is_killed_and_comes_back(
    settings: Settings, tmp_path: Path, mortal_postgresql: Server
) -> None:
    photos = archive(tmp_path / "many", 40)
    add(settings, photos)
    run(settings)
    elsewhere = settings.model_copy(update={"home": tmp_path / "other", "database_url": mortal_postgresql.url})
    add(elsewhere, photos)
    batches = []

    def kill_once() -> None:
        batches.append(1)
        if len(batches) == 1:
            mortal_postgresql.kill()
            threading.Timer(2.0, mortal_postgresql.start).start()

    with night(elsewhere, "archive") as state:
        steps.discover_images(state)
        steps.process_images(state, kill_once)
        steps.group_faces(state)
        steps.audit_catalog(state)
    found = left(elsewhere)
    assert len(batches) > 1
    assert found.problems == []
    assert found.differences(left(settings)) == []


@pytest.mark.long
def test_what_ends_a_night_with_ray_is_no_death_of_a_worker(settings: Settings, tmp_path: Path) -> None:
    photos = archive(tmp_path / "many", 60)

    def unmount() -> None:
        photos.rename(tmp_path / "moved away")

    add(settings, photos)
    with pytest.raises(StoreMissing, match="no such folder"):
        run(settings.model_copy(update={"engine": "ray"}), unmount)
    assert set(statuses(settings).values()) <= {"pending", "failed"}
    (tmp_path / "moved away").rename(photos)
    assert run(settings).failed_images == 2  # those that are broken
