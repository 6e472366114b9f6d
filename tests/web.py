"""A real web server on this machine that serves files well, or in every way that goes wrong."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Web:
    """`put` a file, then fetch it at `url`. The first part of a path says how it is served."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.root = f"http://127.0.0.1:{server.server_port}"
        self.files: dict[str, bytes] = {}
        self.over = threading.Event()

    def put(self, name: str, content: bytes) -> None:
        self.files[name] = content

    def url(self, name: str, how: str = "whole") -> str:
        return f"{self.root}/{how}/{name}"


class Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        how, _, name = self.path.partition("?")[0].strip("/").partition("/")
        content = self.web.files.get(name, b"")
        match how:
            case "whole":
                self.answer(200 if name in self.web.files else 404, content, len(content))
            case "unannounced":
                self.answer(200, content, None)
            case "short":
                self.answer(200, content[:-100], len(content))
            case "moved":
                self.send_response(302)
                self.send_header("Location", f"/whole/{name}?signature=0123")
                self.end_headers()
            case "to-a-file":
                self.send_response(302)
                self.send_header("Location", f"file:///{name}")
                self.end_headers()
            case "silent":
                self.answer(200, content[:100], len(content))
                self.web.over.wait(30)
            case "rude":
                self.close_connection = True

    def answer(self, status: int, content: bytes, length: int | None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Return a running web server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("OwnHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web = Web(server)
    handler.web = web
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield web
    web.over.set()
    server.shutdown()
    thread.join()
    server.server_close()
