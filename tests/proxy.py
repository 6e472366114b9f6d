"""A proxy before a real S3 server that does to requests what networks and servers do to them."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from infra.storage import S3Options

HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


@dataclass
class Fault:
    """Something that happens to the next `times` requests of `method` whose path holds `path`."""

    kind: str
    method: str = "GET"
    path: str = ""
    times: int = 1
    act: Callable[[], None] = lambda: None

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and self.path in unquote(path)


@dataclass
class Proxy:
    """The running proxy: reach it by `options`, and put faults into `faults`. `met` counts what happened."""

    options: S3Options
    faults: list[Fault] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            fault = next((fault for fault in self.faults if fault.fits(method, path)), None)
            if fault is not None:
                fault.times -= 1
                self.met.append(fault.kind)
            return fault


ERRORS = {
    "500": (500, "InternalError"),
    "slow down": (503, "SlowDown"),
    "expired": (403, "ExpiredToken"),
    "expired as AWS says it": (400, "ExpiredToken"),
    "full": (507, "InsufficientStorage"),
}
STALL = 2.0  # seconds; longer than the clients of these tests wait


@contextmanager
def proxy_before(server: S3Options) -> Iterator[Proxy]:
    """Run a proxy before an S3 server."""
    assert server.endpoint is not None
    target = urlsplit(server.endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.fault_for(self.command, self.path)
            kind = "" if fault is None else fault.kind
            if fault is not None:
                fault.act()
            if kind == "reset":
                self.reset()
            elif kind in ERRORS:
                self.refuse(*ERRORS[kind])
            else:
                if kind == "stall":
                    time.sleep(STALL)
                self.forward(body, kind)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815

        def refuse(self, status: int, code: str) -> None:
            answer = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()
            self.close_connection = True

        def forward(self, body: bytes, kind: str) -> None:
            upstream = http.client.HTTPConnection(target)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    wrong = kind == "wrong etag" and name.lower() == "etag"
                    self.send_header(name, '"0123456789abcdef0123456789abcdef"' if wrong else value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command == "HEAD":
                return
            if kind in ("truncated", "stalled body"):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                time.sleep(STALL if kind == "stalled body" else 0)
                self.close_connection = True
            else:
                self.wfile.write(data)

        def finish(self) -> None:
            with suppress(OSError):  # the client has gone, or we have thrown it out
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that does not wait for a stalled answer

    with Server(("127.0.0.1", 0), Handler) as running:
        proxy = Proxy(replace(server, endpoint=f"http://127.0.0.1:{running.server_address[1]}"))
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield proxy
        running.shutdown()
