"""A process that serves: its socket, its signals, its end."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from bistil.errors import InputError
from bistil.runtime.insides import patient_protocol
from bistil.runtime.quiet import kept_levels
from bistil.serving.guard import Guard
from bistil.serving.settings import Limits

logger = logging.getLogger(__name__)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that nobody else has, not listening yet.

    Raises:
        InputError: the port is in use or not ours to use, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"there is no address {host}: {error.strerror or error}") from error
    if os.name == "posix":
        # What an earlier server's connections leave behind for a minute does not count as in use. (Elsewhere it means
        # that two may have the same port.)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _refused(host, port, error) from error
    return opened


def _refused(host: str, port: int, error: OSError) -> InputError:
    why = error.strerror or str(error)
    return InputError(f"cannot serve at {host}, port {port}: {why}; choose another with --port (0: any that is free)")


class Server(uvicorn.Server):
    """Says where it is, and ends after a signal as if nothing had happened.

    Attributes:
        unanswered: requests that were in flight and could not be answered in time.
    """

    unanswered = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        place = f"[{host}]" if ":" in host else host
        logger.info(f"serving at http://{place}:{port}; Ctrl-C stops it")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        tasks = len(self.server_state.tasks)
        logger.info(f"stopping: requests in flight ({tasks}) are answered, new ones are not taken")
        await super().shutdown(sockets)
        self.unanswered = len(self.server_state.tasks)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises them once more at the end, for whom it was before: the process would not end with 0.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def make_server(app: Guard, limits: Limits) -> Server:
    """A server for an application; `serve([socket])` runs it."""
    config: Any = uvicorn.Config(
        app,
        http=patient_protocol(limits.seconds),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle,  # type: ignore[arg-type]  # seconds, whole or not
        timeout_graceful_shutdown=limits.stop,  # type: ignore[arg-type]
    )
    return Server(config)


def serve_until_stopped(app: Guard, opened: socket.socket, limits: Limits) -> int:
    """Serve until SIGTERM or SIGINT, and answer what is in flight by then.

    Returns:
        The number of requests that could not be answered within `limits.stop`.

    Raises:
        InputError: another process listens by now.
    """
    host, port = opened.getsockname()[:2]
    server = make_server(app, limits)
    # What garbage on a socket makes it say is for nobody.
    with kept_levels("uvicorn.error", level=logging.CRITICAL):
        try:
            asyncio.run(server.serve([opened]))
        except OSError as error:
            raise _refused(host, port, error) from error
        finally:
            app.batcher.close(1.0)
    return server.unanswered
