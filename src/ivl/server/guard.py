"""What stands before every route: request ids, who may ask, limits of size and time, the log.

A server that has no key is not for the web pages of others. A browser lets any page send requests
to any address, this machine's own among them, and says in `Origin` whose page it was. A page can
also give its own host name the address of this machine after it has been loaded (DNS rebinding):
then its requests seem to come from the same origin, and only the name in `Host` is wrong. Names
that nobody can have on the internet are no danger: addresses, names without a dot, and those of the
domains that are kept for machines nearby.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import socket
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ivl.server.errors import ApiError, response_of
from ivl.server.metrics import Metrics
from ivl.server.settings import ServerSettings

log = logging.getLogger("ivl.server")

OPEN_PATHS = frozenset({"/", "/health"})
OPEN_FOLDER = "/page/"
"""What needs no key: the page asks for it, and health is asked for by machines."""
SWALLOW_S = 5.0
NEARBY = (".localhost", ".local", ".internal", ".home.arpa")
"""RFC 6761, RFC 6762, ICANN's reservation of 2024 (Docker's host.docker.internal), RFC 8375."""
PORTS = {"http": "80", "https": "443"}
_NAME = re.compile(r"[a-z0-9_.:-]*")
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
            facts = {
                "event": "request",
                "id": request_id,
                "method": method,
                "path": scope["path"],
                "status": status,
                "seconds": round(elapsed_s, 4),
                "client": (scope.get("client") or ("",))[0],
                **scope["state"].get("facts", {}),
            }
            # One line of JSON, which no text of a client can break.
            log.info("%s", json.dumps(facts, ensure_ascii=True, default=str))

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        settings = self.settings
        if (foreign := _foreign(headers, settings)) is not None:
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


def _foreign(headers: Headers, settings: ServerSettings) -> ApiError | None:
    """ApiError 403 for a request of a foreign page, or to a foreign name."""
    if settings.api_key is not None or "*" in settings.cors_origins:
        return None
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not is_own_name(host, settings.allowed_hosts):
        name = _name_of(host)[:200]
        return ApiError(
            403,
            f"This server is not called {name!r}. Start it with --allow-host {name}, or with an "
            "--api-key.",
            code="host_not_allowed",
        )
    if origin is None or origin in settings.cors_origins or _is_same(origin, host):
        return None
    text = (
        f"Pages of {origin[:200]} may not use this server. Start it with --cors {origin[:200]}, or "
        "with an --api-key."
    )
    if origin == "null":
        text = (
            "Files and sandboxed frames may not use this server. Serve the page by http, and start "
            "the server with --cors and the page's origin, or with an --api-key."
        )
    return ApiError(403, text, code="origin_not_allowed")


def is_own_name(host: str, allowed: tuple[str, ...] = ()) -> bool:
    """Whether a `Host` header has a name that the page of a stranger cannot have."""
    name = _name_of(host)
    bare = name.strip("[]").partition("%")[0]
    known = {other.lower() for other in (*allowed, socket.gethostname())}
    if _NAME.fullmatch(bare) is None:
        return False
    if name in known or "*" in allowed or "." not in name or name.endswith(NEARBY):
        return True
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return True


def _name_of(host: str) -> str:
    """Without the port: `[::1]:8000` -> `[::1]`."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0].rstrip(".")


def _is_same(origin: str, host: str | None) -> bool:
    """Whether the page came from the very address that it asks."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if host is None or parts.scheme not in PORTS:
        return False
    default = PORTS[parts.scheme]
    return _with_port(parts.netloc, default) == _with_port(host, default)


def _with_port(netloc: str, default: str) -> str:
    name = netloc.strip().lower()
    has_port = ":" in name.rpartition("]")[2]
    return name if has_port else f"{name}:{default}"


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
