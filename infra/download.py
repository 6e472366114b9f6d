"""Download one file: bounded in size and in patience, whole or not at all."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

MAX_BYTES = 8 * 2**30  # the largest released checkpoint that we know of has 0.9 GB
SILENCE = 30.0  # seconds without a byte after which a server is given up
CHUNK = 2**20


class DownloadError(RuntimeError):
    """A file cannot be had. The message names its address and says what to do."""


def local_path(address: str) -> Path | None:
    """Return the path that a plain path or a file:// address names, None for an address on a server.

    Raises:
        DownloadError: if it is an address of another kind.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        return Path(address)
    parts = urlsplit(address)
    if scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if scheme.lower() not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{address}: only http://, https:// and file:/// addresses can be fetched, and paths.")
    return None


def download(
    url: str,
    into: Path,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    max_bytes: int = MAX_BYTES,
    silence: float = SILENCE,
) -> Path:
    """Fetch an http or https address into a new file of the folder `into`, called as in the address.

    `on_progress` hears how many bytes are there and how many there will be, if the server says so.

    Raises:
        DownloadError: if the server refuses, falls silent for `silence` seconds, breaks off, or sends more than `max_bytes`.
        OSError: if the disk is full or not writable.
    """
    path = into / (PurePosixPath(unquote(urlsplit(url).path)).name or "download")
    with path.open("xb") as file, _answered(url):
        request = urllib.request.Request(url, headers={"User-Agent": "visage", "Accept-Encoding": "identity"})
        with urllib.request.urlopen(request, timeout=silence) as response:
            total = _announced(response)
            if total is not None and total > max_bytes:
                raise _too_large(url, max_bytes)
            done = 0
            on_progress(done, total)
            while chunk := response.read(CHUNK):
                done += len(chunk)
                if done > max_bytes:
                    raise _too_large(url, max_bytes)
                file.write(chunk)
                on_progress(done, total)
    if total is not None and done != total:
        raise DownloadError(f"{url}: the connection ended after {done:,} of {total:,} bytes. Try again.")
    return path


@contextmanager
def _answered(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"{url}: the server answers {error.code} {error.reason}. Is the address right, and open without a log-in?"
        ) from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: {error.reason}. Are address and network right?") from error
    except TimeoutError as error:
        raise DownloadError(f"{url}: the server has fallen silent. Try again.") from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise DownloadError(f"{url}: the connection broke off ({type(error).__name__}). Try again.") from error


def _announced(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _too_large(url: str, max_bytes: int) -> DownloadError:
    return DownloadError(
        f"{url}: the file is larger than the {max_bytes / 1e9:.1f} GB that are fetched. "
        "If it is what you want, download it by other means and name the file."
    )
