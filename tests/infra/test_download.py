"""A download is whole or not there, and no server can make it endless by size or silence."""

import os
from pathlib import Path

import pytest

from infra.download import DownloadError, download, local_path
from tests.web import Web

CONTENT = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def served(web: Web) -> None:
    web.put("model.pth", CONTENT)


@pytest.mark.parametrize("how", ["whole", "unannounced", "moved"])
def test_file_arrives_as_it_is_under_the_name_of_its_address(web: Web, tmp_path: Path, how: str) -> None:
    heard: list[tuple[int, int | None]] = []
    path = download(web.url("model.pth", how), tmp_path, lambda done, total: heard.append((done, total)))
    assert path == tmp_path / "model.pth"
    assert path.read_bytes() == CONTENT
    total = None if how == "unannounced" else len(CONTENT)
    assert heard[0] == (0, total)
    assert heard[-1] == (len(CONTENT), total)
    assert len(heard) > 2


def test_broken_off_download_is_refused(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"model\.pth: the connection ended after 2,999,900 of 3,000,000 bytes"):
        download(web.url("model.pth", "short"), tmp_path)


def test_missing_file_is_told_with_the_answer_of_the_server(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"other\.pth: the server answers 404 Not Found\. Is the address right"):
        download(web.url("other.pth"), tmp_path)


def test_silent_server_is_given_up(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server has fallen silent"):
        download(web.url("model.pth", "silent"), tmp_path, silence=0.2)


def test_server_that_hangs_up_is_told(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the connection broke off"):
        download(web.url("model.pth", "rude"), tmp_path)


@pytest.mark.parametrize(("how", "arrived"), [("whole", 0), ("unannounced", 2**20)])
def test_file_over_the_limit_is_refused_before_it_is_there(web: Web, tmp_path: Path, how: str, arrived: int) -> None:
    with pytest.raises(DownloadError, match=r"larger than the 0\.0 GB"):
        download(web.url("model.pth", how), tmp_path, max_bytes=2_000_000)
    assert (tmp_path / "model.pth").stat().st_size == arrived


def test_server_never_leads_to_a_file_of_this_machine(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="302"):
        download(web.url("etc/passwd", "to-a-file"), tmp_path)


def test_machine_that_is_not_there_is_told(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/model\.pth: .*Are address and network right"):
        download("http://127.0.0.1:9/model.pth", tmp_path)


def test_paths_and_file_addresses_need_no_download() -> None:
    assert local_path("weights/a b.pth") == Path("weights/a b.pth")
    assert local_path("file:///weights/a%20b.pth") == Path("/weights/a b.pth")
    assert local_path("https://example.org/a.pth") is None
    for address in ("ftp://example.org/a.pth", "s3://bucket/a.pth", "file://server/a.pth", "https:///a.pth"):
        with pytest.raises(DownloadError, match="only http"):
            local_path(address)
