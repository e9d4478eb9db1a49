"""What stands in front of the application: the token, bounded bodies, slow clients, headers, counting."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bistil.serving.batching import Batcher
from bistil.serving.metrics import ServerMetrics
from bistil.serving.settings import Limits

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer."""
FAILED = "the server failed; its log says why"
GONE = 499
"""What is counted where nobody was there to be answered."""
BEHIND_TOKEN = ("/predict", "/teacher/predict", "/metrics")


class _GoneError(Exception):
    """The client has closed its connection."""


class _RefusedError(Exception):
    """A request that is answered here."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Guard:
    """An ASGI application in front of another: what passes has a body that is whole and within its limit.

    Args:
        paths: that there are; others are counted together.
        batcher: of the application; whoever runs it closes it.
        token: that requests must bring; None: none.
    """

    def __init__(
        self,
        app: App,
        *,
        batcher: Batcher,
        limits: Limits,
        metrics: ServerMetrics,
        paths: frozenset[str],
        token: str | None = None,
    ) -> None:
        self.app, self.batcher, self.limits, self.metrics, self.paths = app, batcher, limits, metrics, paths
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message.get("headers", [])}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own]
                message["headers"] = [*message.get("headers", []), *more]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), told)
        except _GoneError:
            status = GONE
        except _RefusedError as refused:
            await _answer(told, refused)
        except Exception as error:
            logger.error(f"a request to {scope['path']!r:.100} failed: {type(error).__name__}: {error}")
            if not status:
                await _answer(told, _RefusedError(500, FAILED))
            status = 500
        finally:
            self.metrics.in_flight.dec()
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(status or GONE)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _check_token(self, scope: MutableMapping[str, Any]) -> None:
        if self.token is None or scope["path"] not in BEHIND_TOKEN:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        # In a time that does not tell how much of it is right.
        if not (hmac.compare_digest(token.strip(), self.token) and kind.lower() == b"bearer"):
            raise _RefusedError(401, "a token is needed: Authorization: Bearer TOKEN", **{"www-authenticate": "Bearer"})

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            _RefusedError: it is too large, or does not come in time.
            _GoneError: the client does not wait.
        """
        most = self.limits.body
        too_large = _RefusedError(413, f"the body has more than {most:,} bytes: send less in several requests")
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        # A server of HTTP has checked that it is a number; others who call this may not have.
        if said.isdigit() and int(said) > most:
            raise too_large
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            late = f"the body did not come within {self.limits.seconds:g} s"
            raise _RefusedError(408, late, connection="close") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, and then what comes: that the client has gone."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, refused: _RefusedError) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    await send(
        {
            "type": "http.response.start",
            "status": refused.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
