"""What stands before every route: request ids, who may ask, limits of size and time, the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ivl.server.errors import ApiError, response_of
from ivl.server.metrics import Metrics
from ivl.server.origins import refusal
from ivl.server.settings import ServerSettings

log = logging.getLogger("ivl.server")

OPEN_PATHS = frozenset({"/", "/health"})
OPEN_FOLDER = "/page/"
"""What needs no key: the page asks for it, and health is asked for by machines."""
SWALLOW_S = 5.0
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")


class Guard:
    """ASGI middleware. Refuses before a byte of a body has been read where it can."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.perf_counter(), 499
        method: str = scope["method"]
        if method == "HEAD":  # the same answer as to GET, without what is in it (RFC 9110, 9.3.2)
            scope = {**scope, "method": "GET"}
        if scope["path"].startswith(("http://", "https://")):  # the absolute form, for proxies
            scope = {**scope, "path": urlsplit(scope["path"]).path or "/"}
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            error = self._refusal(scope, headers)
            if error is not None:
                if error.status == 413:
                    await _swallow(receive, headers, self.settings)
                await response_of(error, scope["path"])(scope, receive, send_noted)
                return
            bounded = _BoundedBody(receive, self.settings)
            try:
                await self.app(scope, bounded.receive, send_noted)
            except ApiError as late:  # raised by `receive` where no route catches it
                if status != 499:
                    raise
                if late.status == 413:
                    await _swallow(receive, headers, self.settings)
                await response_of(late, scope["path"])(scope, receive, send_noted)
        finally:
            elapsed_s = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            log_line(
                "request",
                id=request_id,
                method=method,
                path=scope["path"],
                status=status,
                seconds=round(elapsed_s, 4),
                client=(scope.get("client") or ("",))[0],
                **scope["state"].get("facts", {}),
            )

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        settings = self.settings
        if (foreign := refusal(headers, settings)) is not None:
            return foreign
        key = settings.api_key
        is_preflight = scope["method"] == "OPTIONS"
        path: str = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or is_preflight
        if key is not None and not is_open:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                challenge = {"WWW-Authenticate": "Bearer"}
                text = "A valid API key is needed: `Authorization: Bearer KEY`."
                return ApiError(401, text, code="invalid_api_key", headers=challenge)
        coding = headers.get("content-encoding", "identity").lower()
        if coding not in ("", "identity"):
            return ApiError(
                415, f"A body in {coding[:50]!r} is not unpacked here; send it as it is."
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return ApiError(400, "Content-Length is no number.")
        if int(length) > settings.max_body_bytes:
            return _too_large(settings)
        return None


class _BoundedBody:
    """Passes on what `receive` gives, as long as it is not too much and not too late."""

    def __init__(self, receive: Receive, settings: ServerSettings) -> None:
        self._receive, self._settings = receive, settings
        self._num_bytes = 0
        self._until = time.monotonic() + settings.body_timeout_s
        self._is_whole = False

    async def receive(self) -> Message:
        if self._is_whole:  # what comes now is the end of the connection
            return await self._receive()
        left_s = self._until - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left_s, 0.001))
        except TimeoutError:
            limit = self._settings.body_timeout_s
            raise ApiError(408, f"The body did not arrive within {limit:g} s.") from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._num_bytes > self._settings.max_body_bytes:
                raise _too_large(self._settings)
        return message


async def _swallow(receive: Receive, headers: Headers, settings: ServerSettings) -> None:
    """Lets a body that is a little too large come to its end, unread.

    Most clients listen for an answer only when they have sent everything, and a connection that is
    closed before tells them nothing. One that is far too large is not waited for.
    """
    most = 2 * settings.max_body_bytes
    if int(headers.get("content-length", "0")) > most:
        return
    until = time.monotonic() + min(SWALLOW_S, settings.body_timeout_s)
    while most > 0:
        try:
            message = await asyncio.wait_for(receive(), max(until - time.monotonic(), 0.001))
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        most -= len(message.get("body", b""))


def _too_large(settings: ServerSettings) -> ApiError:
    most = settings.max_body_bytes / 1024**2
    close = {"Connection": "close"}
    return ApiError(413, f"The body is larger than {most:g} MiB.", headers=close)


def log_line(event: str, **facts: Any) -> None:
    """One line of JSON, which no text of a client can break."""
    log.info("%s", json.dumps({"event": event, **facts}, ensure_ascii=True, default=str))
