"""Folders and buckets keep the same promises: order, bounds, atomic writes, errors that tell."""

import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.storage import (
    AccessDenied,
    Entry,
    Filter,
    Folder,
    InvalidKey,
    ListingOutOfOrder,
    ListingProblem,
    ObjectChanged,
    ObjectMissing,
    ObjectTooLarge,
    S3Options,
    Store,
    StoreError,
    StoreMissing,
    StoreUnavailable,
    open_store,
)
from infra.storage.base import ascending
from infra.storage.s3 import S3
from tests.s3 import client

LIMIT = 1_000_000
AWKWARD_KEYS = [
    "a b.jpg", "a%20b.jpg", "a+b.jpg", "a\tb.jpg", "a/b.jpg", "a.jpg", "a!.jpg", "a0.jpg", "é.jpg", "e\u0301.jpg", "😀.jpg",
    "\uffee.jpg", "-rf.jpg", "'\"<&>.jpg", "x\\y.jpg", "ab/c/d/e.jpg", "ab.c/d.jpg", "Bytes:x.jpg", "a?b#c.jpg",
    "日本/写真.jpg",
]  # fmt: skip


@pytest.fixture(params=["folder", "s3", "s3 with prefix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Every promise below holds for each of these."""
    if request.param == "folder":
        return Folder(tmp_path)
    bucket: S3 = request.getfixturevalue("bucket")
    return bucket if request.param == "s3" else S3(bucket.bucket, "some/where", bucket.options)


def listed(store: Store, prefix: str = "", start_after: str | None = None) -> list[Entry]:
    found = [entry for page in store.list(prefix, start_after) for entry in page]
    assert not [entry for entry in found if isinstance(entry, ListingProblem)]
    return [entry for entry in found if isinstance(entry, Entry)]


def keys(store: Store, prefix: str = "", start_after: str | None = None) -> list[str]:
    return [entry.key for entry in listed(store, prefix, start_after)]


def put(store: Store, *names: str) -> None:
    for name in names:
        store.put(name, name.encode(), "image/jpeg")


# Both kinds of store


def test_what_is_put_is_read_back_and_listed_with_its_etag_and_size(store: Store) -> None:
    etag = store.put("a/b.jpg", b"content", "image/jpeg", {"run": "7"})
    blob = store.read("a/b.jpg", LIMIT)
    assert (blob.data, blob.etag, blob.size) == (b"content", etag, 7)
    [entry] = listed(store)
    assert (entry.key, entry.etag, entry.size) == ("a/b.jpg", etag, 7)
    assert abs(entry.modified.timestamp() - time.time()) < 60


def test_keys_come_in_the_order_of_their_utf8_bytes(store: Store) -> None:
    put(store, *AWKWARD_KEYS)
    assert keys(store) == sorted(AWKWARD_KEYS, key=str.encode)
    assert all(store.read(key, LIMIT).data == key.encode() for key in AWKWARD_KEYS)


def test_listing_continues_behind_any_key(store: Store) -> None:
    put(store, *AWKWARD_KEYS)
    everything = sorted(AWKWARD_KEYS)
    for start in [*everything, "", "a", "a/", "ab/c", "ab/c/d/z", "zzz"]:
        assert keys(store, start_after=start) == [key for key in everything if key > start]


def test_prefix_selects_keys_that_begin_with_it(store: Store) -> None:
    put(store, *AWKWARD_KEYS)
    for prefix in ["a", "a/", "ab", "ab/c", "ab/c/d/", "日", "none", "a b.jpg"]:
        assert keys(store, prefix) == [key for key in sorted(AWKWARD_KEYS) if key.startswith(prefix)]


def test_a_place_inside_a_store_is_known_by_the_prefix_of_its_keys(store: Store, tmp_path: Path) -> None:
    inner = open_store(f"{store.uri.removesuffix('/')}/crops/1")
    assert store.prefix_of(inner) == "crops/1/"
    assert store.prefix_of(store) == ""
    assert inner.prefix_of(store) is None
    assert store.prefix_of(open_store(f"{store.uri.removesuffix('/')}-beside")) is None
    assert store.prefix_of(S3("another") if isinstance(store, Folder) else Folder(tmp_path)) is None


def test_object_larger_than_allowed_is_refused(store: Store) -> None:
    store.put("big.jpg", b"x" * 1000, "image/jpeg")
    assert store.read("big.jpg", 1000).size == 1000
    with pytest.raises(ObjectTooLarge, match=r"big\.jpg: 1,000 bytes, more than the 999 allowed"):
        store.read("big.jpg", 999)


def test_object_replaced_after_listing_is_not_passed_off_as_the_listed_one(store: Store) -> None:
    etag = store.put("a.jpg", b"first", "image/jpeg")
    assert store.read("a.jpg", LIMIT, etag).data == b"first"
    store.put("a.jpg", b"second", "image/jpeg")
    with pytest.raises(ObjectChanged, match=r"a\.jpg"):
        store.read("a.jpg", LIMIT, etag)


def test_vanished_object_is_missing_not_unavailable(store: Store) -> None:
    etag = store.put("a.jpg", b"x", "image/jpeg")
    assert store.exists("a.jpg")
    store.delete("a.jpg")
    assert not store.exists("a.jpg")
    assert keys(store) == []
    for expected in (None, etag):
        with pytest.raises(ObjectMissing, match=r"a\.jpg") as raised:
            store.read("a.jpg", LIMIT, expected)
        assert not raised.value.retryable


def test_deleting_twice_is_no_error(store: Store) -> None:
    put(store, "a.jpg")
    store.delete("a.jpg")
    store.delete("a.jpg")


def test_a_store_travels_to_another_process_as_a_value(store: Store) -> None:
    put(store, "a.jpg")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.read("a.jpg", LIMIT).data == b"a.jpg"


def test_threads_share_a_store(store: Store) -> None:
    names = [f"{i}.jpg" for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, name.encode(), "image/jpeg"), names))
        blobs = list(threads.map(lambda name: store.read(name, LIMIT), names))
    assert [blob.data.decode() for blob in blobs] == names


def test_errors_survive_the_way_between_processes(store: Store) -> None:
    with pytest.raises(ObjectMissing) as raised:
        store.read("nothing.jpg", LIMIT)
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is ObjectMissing
    assert str(again) == str(raised.value)
    assert store.url("nothing.jpg") in str(again)


def test_a_key_out_of_order_stops_the_listing() -> None:
    entries = [Entry(key, "", 0, None) for key in ("a", "c", "b")]  # type: ignore[arg-type]
    with pytest.raises(ListingOutOfOrder, match="'b' after 'c'"):
        list(ascending([entries[:2], [], entries[2:]], "s3://x"))


# Folders

PIECES = [b"a", b"b", b".", b"/", b"\xff", b"\xc3\xa9", b"bytes:", b"%", b"\n", b"~"]
NAMES = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.lists(
        st.sampled_from([b"a", b"b", b".", b"/", b"\xff", b"\xc3\xa9", b"bytes:", b"%", b"\n", b"~"]),
        min_size=1,
        max_size=4,
    ).map(b"".join),
)


@given(st.sets(NAMES, max_size=12))
@example({b"bytes:a", b"bytes:\xff", b"bytes;", b"bytes9", b"\xff/bytes:", b"a\xff/b.jpg", b"a/b", b"a.b"})
def test_every_file_has_one_key_and_back_whatever_its_bytes(paths: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        content = {}
        for path in paths:
            full = os.path.join(os.fsencode(root), path.replace(b"\0", b"0").lstrip(b"/"))
            try:
                if not Path(os.fsdecode(os.path.realpath(full))).is_relative_to(root):
                    continue
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, "wb") as file:
                    file.write(path)
            except OSError:  # a name that is a directory already, or "."
                continue
            content[os.path.realpath(full)] = path
        folder = Folder(Path(root))
        found = keys(folder)
        assert found == sorted(found, key=str.encode)
        assert {folder.read(key, LIMIT).data for key in found} == set(content.values())
        assert len(found) == len(content)
        for start in found:
            assert keys(folder, start_after=start) == [key for key in found if key > start]


@given(
    st.text(max_size=12)
    | st.lists(st.sampled_from(["..", ".", "", "a", "bytes:%2E%2E", "bytes:%2F", "~"])).map("/".join)
)
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        Path(outer, "secret").write_bytes(b"secret")
        folder = Folder(Path(outer, "inner"))
        folder.root.mkdir()
        for attempt in (key, key + "/secret", "../secret", f"{outer}/secret", "a/../../secret", "bytes:%2E%2E/secret"):
            with pytest.raises(StoreError):
                folder.read(attempt, LIMIT)
        with pytest.raises(InvalidKey):
            folder.put("../written", b"", "image/jpeg")
        assert sorted(os.listdir(outer)) == ["inner", "secret"]


def test_link_out_of_the_folder_is_reported_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file.jpg").symlink_to(outside / "secret.jpg")
    (root / "directory").symlink_to(outside)
    folder = Folder(root)
    [directory, file] = [entry for page in folder.list() for entry in page]
    assert isinstance(directory, ListingProblem)
    assert isinstance(file, ListingProblem)
    assert (directory.key, file.key) == ("directory", "file.jpg")
    assert "leads out of the folder" in file.message
    for key in ("file.jpg", "directory/secret.jpg"):
        with pytest.raises(AccessDenied, match="leads out of the folder"):
            folder.read(key, LIMIT)
    with pytest.raises(AccessDenied):
        folder.put("directory/new.jpg", b"", "image/jpeg")
    with pytest.raises(AccessDenied):
        folder.delete("directory/secret.jpg")
    assert os.listdir(outside) == ["secret.jpg"]


def test_links_inside_the_folder_lead_to_their_files_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").write_bytes(b"one")
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "link.jpg").symlink_to("real/1.jpg")
    folder = Folder(tmp_path)
    assert keys(folder) == ["link.jpg", "real/1.jpg"]
    assert folder.read("link.jpg", LIMIT).data == b"one"


def test_dangling_and_circular_links_are_problems_with_a_key(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "good.jpg").write_bytes(b"good")
    found = {entry.key: entry for page in Folder(tmp_path).list() for entry in page}
    assert isinstance(found["good.jpg"], Entry)
    assert "circle" in getattr(found["a.jpg"], "message", "")
    assert "no such file" in getattr(found["gone.jpg"], "message", "")


def test_pipes_and_sockets_are_reported_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.jpg"))
    (tmp_path / "directory.jpg").mkdir()
    folder = Folder(tmp_path)
    found = {entry.key: getattr(entry, "message", "") for page in folder.list() for entry in page}
    assert found.keys() == {"pipe.jpg", "socket.jpg"}
    assert "a named pipe, not a file" in found["pipe.jpg"]
    for key in ("pipe.jpg", "directory.jpg"):
        with pytest.raises(ObjectMissing, match="not a file"):
            folder.read(key, LIMIT)
        assert not folder.exists(key)
    with pytest.raises(StoreError, match=r"socket\.jpg"):
        folder.read("socket.jpg", LIMIT)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Lay down root's power to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_directory_is_a_problem_in_its_place_and_the_rest_is_listed() -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own folder is closed to nobody
        os.chmod(root, 0o755)
        folder = Folder(Path(root))
        put(folder, "a.jpg", "closed/b.jpg", "z.jpg")
        os.chmod(folder.root / "a.jpg", 0)
        os.chmod(folder.root / "closed", 0)
        with as_nobody():
            found = [entry for page in folder.list() for entry in page]
            with pytest.raises(AccessDenied, match="Permission denied"):
                folder.read("a.jpg", LIMIT)
        assert [entry.key for entry in found] == ["a.jpg", "closed/", "z.jpg"]
        assert isinstance(found[1], ListingProblem)
        assert "Permission denied" in found[1].message
        os.chmod(folder.root / "closed", 0o755)


def test_missing_folder_is_an_error_not_an_empty_collection(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="mounted"):
        list(Folder(tmp_path / "unmounted").list())


def test_a_thousand_directories_deep_is_listed(tmp_path: Path) -> None:
    deep = [f"{tmp_path}/" + "d/" * level for level in range(1, 1101)]
    try:
        for directory in deep:
            os.mkdir(directory)
        Path(deep[-1], "x.jpg").write_bytes(b"x")
        assert keys(Folder(tmp_path)) == ["d/" * 1100 + "x.jpg"]
    finally:  # too deep for shutil.rmtree, which pytest cleans up with
        Path(deep[-1], "x.jpg").unlink(missing_ok=True)
        for directory in reversed(deep):
            os.rmdir(directory)


def test_listing_comes_in_pages_of_a_thousand(tmp_path: Path) -> None:
    for i in range(2500):
        (tmp_path / f"{i:04}.jpg").touch()
    assert [len(page) for page in Folder(tmp_path).list()] == [1000, 1000, 500]


def test_etag_survives_a_copy_that_keeps_times_and_changes_with_the_content(tmp_path: Path) -> None:
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    put(one, "a.jpg")
    put(two, "a.jpg")
    status = os.stat(one.root / "a.jpg")
    os.utime(two.root / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(one)[0].etag == listed(two)[0].etag
    os.utime(two.root / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert listed(one)[0].etag != listed(two)[0].etag


def test_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 1_000_000)
    folder, stop = Folder(tmp_path), threading.Event()

    def grow() -> None:
        while not stop.is_set():
            with open(path, "ab") as file:
                file.write(b"y")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        refused, deadline = 0, time.monotonic() + 30  # a busy machine gives the writer its turn late
        while not refused and time.monotonic() < deadline:
            try:
                blob = folder.read("a.jpg", 10_000_000)
                assert f"-{blob.size:x}" in blob.etag
            except ObjectChanged:
                refused += 1
    finally:
        stop.set()
        writer.join()
    assert refused


def test_failed_write_leaves_the_old_object_and_no_litter(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a.jpg", b"old", "image/jpeg")
    with pytest.raises(TypeError):
        folder.put("a.jpg", "text is no bytes", "image/jpeg")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["a.jpg"]
    assert folder.read("a.jpg", LIMIT).data == b"old"


def test_key_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    put(folder, "a/b.jpg")
    for key in ("", "/a", "a//b", "a/./b", "a\0b", "x" * 300, "a", "a/b.jpg/c.jpg", "\udcff"):
        with pytest.raises(InvalidKey):
            folder.put(key, b"", "image/jpeg")


def test_times_beyond_the_calendar_are_listed(tmp_path: Path) -> None:
    put(Folder(tmp_path), "a.jpg", "b.jpg")
    os.utime(tmp_path / "a.jpg", ns=(0, -(10**9)))
    try:
        os.utime(tmp_path / "b.jpg", (0, 10**12))
    except (OSError, OverflowError):
        pytest.skip("this file system knows no such times")
    assert listed(Folder(tmp_path))[0].modified.year == 1969


# S3


def test_listing_a_bucket_of_several_pages_gives_every_key_once(bucket: S3) -> None:
    names = [f"{i * 7919 % 10007:05}.jpg" for i in range(1203)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: bucket.put(name, b"", "image/jpeg"), names))
    assert keys(bucket) == sorted(names)
    assert [len(page) for page in bucket.list()] == [1000, 203]
    assert keys(bucket, start_after=sorted(names)[1000]) == sorted(names)[1001:]


def test_prefix_of_a_store_is_a_directory(bucket: S3) -> None:
    put(bucket, "photos/a.jpg", "photos2/b.jpg", "photos.jpg")
    bucket.put("photos/", b"", "application/x-directory")
    assert keys(S3(bucket.bucket, "photos", bucket.options)) == ["a.jpg"]
    assert S3(bucket.bucket, "photos", bucket.options) == S3(bucket.bucket, "photos/", bucket.options)


def test_deleting_from_a_bucket_with_versions_leaves_no_version(bucket: S3) -> None:
    plain = client(bucket.options)
    plain.put_bucket_versioning(Bucket=bucket.bucket, VersioningConfiguration={"Status": "Enabled"})
    put(bucket, "a.jpg", "a.jpg", "a.jpg.bak")
    bucket.delete("a.jpg")
    answer = plain.list_object_versions(Bucket=bucket.bucket)
    assert [version["Key"] for version in answer["Versions"]] == ["a.jpg.bak"]
    assert "DeleteMarkers" not in answer


def test_missing_bucket_is_an_error_not_an_empty_collection(s3_options: S3Options) -> None:
    with pytest.raises(StoreMissing, match=r"s3://no-such-bucket/.*no such bucket"):
        list(S3("no-such-bucket", options=s3_options).list())


def test_wrong_credentials_are_told_as_such(bucket: S3) -> None:
    put(bucket, "a.jpg")
    stranger = S3(bucket.bucket, options=S3Options(bucket.options.endpoint, "us-east-1", "stranger", "wrong"))
    actions: list[Callable[[], object]] = [
        lambda: list(stranger.list()),
        lambda: stranger.read("a.jpg", LIMIT),
        lambda: stranger.exists("a.jpg"),
        lambda: stranger.put("b.jpg", b"", "image/jpeg"),
        lambda: stranger.delete("a.jpg"),
    ]
    with _authorization(bucket.options):
        for action in actions:
            with pytest.raises(AccessDenied, match="credentials") as raised:
                action()
            assert not raised.value.retryable


@contextmanager
def _authorization(options: S3Options) -> Iterator[None]:
    def after(actions: str) -> None:
        url, plain = f"{options.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urlopen(Request(url, actions.encode(), plain, method="POST")).close()

    after("0")
    try:
        yield
    finally:
        after("inf")


def test_no_credentials_at_all_say_what_to_set(monkeypatch: pytest.MonkeyPatch, s3_options: S3Options) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        S3("bucket", options=S3Options(s3_options.endpoint, "eu-west-1")).read("a.jpg", LIMIT)


@contextmanager
def broken_server(answer: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[tuple[S3, list[int]]]:
    """A server that answers every GET by `answer(handler, how_many_before)`."""
    seen: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(len(seen))
            answer(self, seen[-1])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield S3("bucket", options=S3Options(endpoint, "us-east-1", "key", "secret")), seen
        server.shutdown()


def _send(handler: BaseHTTPRequestHandler, announced: int, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(announced))
    handler.send_header("ETag", '"abc"')
    handler.end_headers()
    handler.wfile.write(body)


def test_body_cut_off_on_the_way_is_fetched_again() -> None:
    with broken_server(lambda handler, before: _send(handler, 10, b"0123456789"[: 10 if before else 4])) as (
        store,
        seen,
    ):
        assert store.read("a.jpg", LIMIT).data == b"0123456789"
        assert len(seen) == 2


def test_body_always_cut_off_is_an_error_never_half_an_object() -> None:
    with broken_server(lambda handler, _: _send(handler, 10, b"0123")) as (store, seen):
        with pytest.raises(StoreUnavailable, match="only part of the object arrived") as raised:
            store.read("a.jpg", LIMIT)
        assert raised.value.retryable
        assert len(seen) == 4


def test_object_too_large_is_refused_before_its_content_is_fetched() -> None:
    with (
        broken_server(lambda handler, _: _send(handler, 10**12, b"only the beginning")) as (store, _),
        pytest.raises(ObjectTooLarge, match="1,000,000,000,000 bytes"),
    ):
        store.read("a.jpg", LIMIT)


def test_server_errors_are_retried_a_bounded_number_of_times() -> None:
    with broken_server(lambda handler, _: _send(handler, 0, b"", 503)) as (store, seen):
        with pytest.raises(StoreUnavailable) as raised:
            store.read("a.jpg", LIMIT)
        assert raised.value.retryable
        assert len(seen) == 4


def test_unreachable_server_is_told_as_such() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        store = S3(
            "bucket", options=S3Options(f"http://127.0.0.1:{taken.getsockname()[1]}", "us-east-1", "key", "secret")
        )
        with pytest.raises(StoreUnavailable, match="endpoint") as raised:
            list(store.list())
        assert raised.value.retryable


# Opening and choosing


def test_stores_open_by_path_or_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        open_store("/photos")
        == open_store("file:///photos")
        == open_store("file://localhost/photos")
        == Folder(Path("/photos"))
    )
    assert open_store("photos") == Folder(tmp_path / "photos")
    assert open_store("file:///a%20b?c#d").uri == "/a b?c#d"
    assert open_store("s3://archive") == S3("archive")
    assert open_store("s3://archive/1923/scans/").uri == "s3://archive/1923/scans/"
    for store in (open_store("/photos"), open_store("s3://archive/1923")):
        assert open_store(store.uri) == store


@pytest.mark.parametrize("uri", ["", "ftp://host/photos", "s3://", "s3:///photos", "file://photos"])
def test_uri_that_names_no_store_is_refused(uri: str) -> None:
    with pytest.raises(ValueError):
        open_store(uri)


def test_secret_key_is_not_shown() -> None:
    options = S3Options("https://minio:9000", "us-east-1", "key", "very-secret")
    assert "very-secret" not in repr(S3("bucket", options=options))
    with pytest.raises(ValueError, match="http"):
        S3Options("minio:9000")
    with pytest.raises(ValueError, match="both or neither"):
        S3Options(access_key="key")


@pytest.mark.parametrize(
    ("chosen", "key", "expected"),
    [
        (Filter(), "a/b/IMG_1.JPG", True),
        (Filter(), "photo.heic", True),
        (Filter(), "movie.mp4", False),
        (Filter(), "jpg", False),
        (Filter(), "bytes:%FF.jpg", True),
        (Filter(), "a/._IMG_1.jpg", False),
        (Filter(), "a/@eaDir/b.jpg", False),
        (Filter(exclude=()), "a/._IMG_1.jpg", True),
        (Filter(include=("*.jpg",)), "deep/down/x.JPG", True),
        (Filter(include=("2024/*.jpg",)), "2024/x.jpg", True),
        (Filter(include=("2024/*.jpg",)), "2024/05/x.jpg", False),
        (Filter(include=("2024/**",)), "2024/05/x", True),
        (Filter(include=("2024/**",)), "old/2024/x.jpg", False),
        (Filter(include=("**/scans/*.tif",)), "scans/x.tif", True),
        (Filter(include=("**/scans/*.tif",)), "a/b/scans/x.tif", True),
        (Filter(include=("**/scans/*.tif",)), "a/myscans/x.tif", False),
        (Filter(include=("img_??.jpg",)), "img_01.jpg", True),
        (Filter(include=("img_??.jpg",)), "img_1.jpg", False),
        (Filter(include=("[0-9]*.jpg",)), "7.jpg", True),
        (Filter(include=("[!0-9]*.jpg",)), "7.jpg", False),
        (Filter(include=("[!0-9]*.jpg",)), "a.jpg", True),
        (Filter(include=("a+b (1).jpg",)), "a+b (1).jpg", True),
        (Filter(include=("[",)), "[", True),
        (Filter(include=("[!]",)), "[!]", True),
        (Filter(include=("*",)), "a\nb", True),
        (Filter(exclude=("private/**",)), "private/x.jpg", False),
        (Filter(exclude=("private/**",)), "public/x.jpg", True),
    ],
)
def test_filter_chooses_keys(chosen: Filter, key: str, expected: bool) -> None:
    assert chosen(key) is expected
    assert pickle.loads(pickle.dumps(chosen))(key) is expected


def test_pattern_that_cannot_be_understood_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"'\[z-a\]'"):
        Filter(include=("[z-a]",))
