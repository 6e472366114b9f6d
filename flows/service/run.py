"""Run the service with uvicorn, on a socket that is bound before anybody is told its address."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from flows.service.app import create_app
from infra.settings import Settings

KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 2  # for answers that are on their way when it is stopped
BACKLOG = 256


def run(
    settings: Settings, host: str, port: int, exposed: bool, names: tuple[str, ...], on_ready: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Raises:
        OSError: if the address cannot be bound; says which.
    """
    with bind(host, port) as listener:
        on_ready(f"http://{_shown(host, names)}:{listener.getsockname()[1]}")
        uvicorn.Server(configured(create_app(settings, exposed=exposed))).run(sockets=[listener])


def configured(app: FastAPI) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: naming the address, if it is taken or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen at {host} port {port}: {error.strerror}; try another --port"
        ) from error
    return listener


def _shown(host: str, names: tuple[str, ...]) -> str:
    if names:
        return names[0]
    return f"[{host}]" if ":" in host else "localhost" if host == "127.0.0.1" else host
