"""Runs the application: sockets, TLS, slow clients, signals, memory."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import ipaddress
import logging
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ivl.errors import ConfigError
from ivl.server.app import create_app
from ivl.server.errors import ApiError
from ivl.server.hub import FindFacts, Loader, ModelHub
from ivl.server.settings import ServerSettings

log = logging.getLogger("ivl.server")

BACKLOG = 512
KEEP_ALIVE_S = 75
MAX_HEAD_BYTES = 32 * 1024
LOG_LEVELS = ("debug", "info", "warning", "error")

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Numbers of malloc.h."""
NUM_POOLS = 2
RETURN_BYTES = 32 * 1024**2
"""What is larger is given back as soon as it is freed; below, steps of the engine use it again."""


def patient_protocol(header_timeout_s: float) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection whose first request head does not come in time.

    uvicorn itself waits for ever, so that a few hundred silent connections would be all there are.
    """

    class PatientProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._alarm = self.loop.call_later(header_timeout_s, self._close_silent)

        def connection_lost(self, exc: Exception | None) -> None:
            self._alarm.cancel()
            super().connection_lost(exc)

        def _close_silent(self) -> None:
            """No request has begun: `cycle` is there from the first whole head on."""
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return PatientProtocol


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError when the address cannot be had."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"`port` is {port}.", "A port is a number from 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "`host` is an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them."
        if error.errno == errno.EADDRINUSE:
            hint = "Is another server running? `port` takes another number, 0 a free one."
        elif error.errno == errno.EACCES:
            hint = "Ports below 1024 are for the administrator: `port=8000`."
        raise ConfigError(
            f"The address {host}, port {port}, cannot be used: {error.strerror}.", hint
        ) from None
    return sock


def make_server(
    loaders: Mapping[str, Loader],
    settings: ServerSettings,
    *,
    stored: Mapping[str, FindFacts] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> ModelServer:
    """A server that has its address, and serves when it is `run`. ConfigError for an address or TLS
    files that cannot be used. `stored` as of `ModelHub`."""
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("`tls_cert` and `tls_key` belong together.", "Give both, or neither.")
    for file in (tls_cert, tls_key):
        if file is not None and not file.is_file():
            raise ConfigError(f"There is no file {file}.", "Check the spelling.")
    app = create_app(ModelHub(loaders, stored), settings)
    config = uvicorn.Config(
        app,
        http=patient_protocol(settings.header_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_s) + 5,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    try:
        config.load()
    except ssl.SSLError as error:
        raise ConfigError(
            f"The TLS files cannot be used: {error}.", "Both are PEM, and belong together."
        ) from None
    server = ModelServer(config, app, settings)
    server.sock = bind(host, port)
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if tls_cert is None else "https"
    server.url = f"{scheme}://{shown}:{server.sock.getsockname()[1]}"
    return server


class ModelServer(uvicorn.Server):
    """Loads the first model when connections are taken, and lets the hub know of the end."""

    sock: socket.socket
    url: str

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._hub: ModelHub = app.state.context.hub
        self._settings = settings
        self._loading: asyncio.Future[None] | None = None

    def serve_models(self) -> None:
        """Serves until SIGINT or SIGTERM; then what runs may end, and what comes is refused. A
        second SIGINT stops at once.

        The first model is loaded at the start, while /health says so. Raises what its loader raises
        for a model that cannot be loaded.
        """
        log.info("listening on %s", self.url)
        host = str(self.sock.getsockname()[0])
        if self._settings.api_key is None and not ipaddress.ip_address(host).is_loopback:
            log.warning(
                "everybody who can reach this machine at %s can use the server: give it an "
                "--api-key, or leave --host out",
                host,
            )
        self.run(sockets=[self.sock])
        if self.failure is not None:
            raise self.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.ensure_future(self._load())
        self._loading.add_done_callback(self._end_if_failed)

    async def _load(self) -> None:
        async with self._hub.use(None) as model:
            log.info("ready: %s, context %d", model.name, model.engine.context)

    def _end_if_failed(self, loading: asyncio.Future[None]) -> None:
        if not loading.cancelled() and (error := loading.exception()) is not None:
            # Who starts the server hears what is wrong, and not how clients would be told.
            self.failure = error.__cause__ if isinstance(error, ApiError) else error
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: ends the server when an engine has failed, so that whatever watches
        over the process can start another."""
        if self.failure is None and (failure := self._hub.failure) is not None:
            log.error("the engine has failed, so the server ends")
            self.failure = failure
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.ensure_future(self._hub.close(self._settings.drain_s))
        await super().shutdown(sockets)
        if self.force_exit:
            await self._hub.close(0.0)
        await closing
        # An orderly end is no failure, whichever signal asked for it.
        self._captured_signals.clear()


class StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is then: a program that has a server may close an earlier one."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr(level: str) -> None:
    """One line each: JSON about requests, words about the rest."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name, lowest in (("ivl", level), ("uvicorn.error", "warning")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(lowest.upper())
        logger.propagate = False


def bound_free_memory() -> bool:
    """Two pools for all threads, and a fixed size to give back; to be called before threads start.
    False where the C library is another, which keeps its own ways.

    Pictures are decoded in many threads. glibc gives each thread a pool of its own, up to eight for
    every core, and raises the size from which it returns memory at once each time that something
    large is freed (mallopt(3), M_MMAP_THRESHOLD). Memory of a server then grows for weeks after its
    caches are full, with pools that hold nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    wanted = (
        (M_ARENA_MAX, NUM_POOLS),
        (M_MMAP_THRESHOLD, RETURN_BYTES),
        (M_TRIM_THRESHOLD, 2 * RETURN_BYTES),
    )
    taken = [mallopt(name, value) == 1 for name, value in wanted]  # each, whatever the others say
    return all(taken)
