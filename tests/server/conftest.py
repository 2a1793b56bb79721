"""Servers on loopback, in threads of the tests' own process."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import ivl
from ivl.engine.engine import EngineLimits
from ivl.engine.service import Service
from ivl.server.run import ModelServer, make_server
from ivl.server.settings import ServerSettings

TIMEOUT_S = 60
SAMPLES = Path(__file__).parents[2] / "samples"


@dataclass
class RunningServer:
    """A server, and a plain client of its own."""

    server: ModelServer
    http: httpx.Client
    thread: threading.Thread

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def service(self) -> Service:
        return self.server._hub.loaded[0].service

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    def wait_until_idle(self) -> None:
        """Nothing runs or waits any more, and every block has come back."""
        until = time.monotonic() + TIMEOUT_S
        while (state := self.service.state()).num_running or state.num_waiting:
            assert time.monotonic() < until, "something runs for ever"
            time.sleep(0.01)
        assert state.num_used_blocks == 0


def ask_at_once(server: RunningServer, body: Any, count: int) -> list[httpx.Response]:
    """Answers to so many equal requests that arrive together, each by a client of its own."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        url = f"{server.url}/v1/chat/completions"
        answers.append(httpx.post(url, json=body, timeout=TIMEOUT_S))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(answers) == count
    return answers


@contextmanager
def running(model: Any, *, limits: EngineLimits | None = None, **settings: Any) -> Iterator[Any]:
    """A server for one loaded model, named `demo`, that has said that it is ready."""
    chosen = limits or EngineLimits(for_many=True, kv_tokens=16 * model.engine.context)
    loaders = {"demo": lambda: Service(model.engine.with_limits(chosen))}
    settings = {"drain_s": 5.0, **settings}
    server = make_server(loaders, ServerSettings(**settings), port=0)
    thread = threading.Thread(target=server.serve_models)
    thread.start()
    http_client = httpx.Client(base_url=server.url, timeout=TIMEOUT_S)
    until = time.monotonic() + TIMEOUT_S
    while http_client.get("/health").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.02)
    try:
        yield RunningServer(server, http_client, thread)
    finally:
        http_client.close()
        server.should_exit = True
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def demo() -> Any:
    return ivl.load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny(tiny_model_dir: Path) -> Any:
    """Writes until it is told to stop; see `tiny_model_dir`."""
    return ivl.load(tiny_model_dir, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def server(demo: Any) -> Iterator[RunningServer]:
    """The bundled model with the usual settings."""
    with running(demo) as found:
        yield found


@pytest.fixture(scope="session")
def endless(tiny: Any) -> Iterator[RunningServer]:
    """The tiny model, whose answers last until max_tokens, with narrow limits."""
    limits = EngineLimits(for_many=True, kv_tokens=4 * 512, max_sequences=4, max_queued=4)
    with running(
        tiny,
        limits=limits,
        max_body_bytes=200_000,
        body_timeout_s=0.5,
        header_timeout_s=0.5,
        max_images=3,
    ) as found:
        yield found


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(size: tuple[int, int], colour: str = "white") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def receipt() -> bytes:
    return (SAMPLES / "receipt.png").read_bytes()


def pdf_of(pages: list[Image.Image]) -> bytes:
    """A PDF of pictures, written by Pillow."""
    file = io.BytesIO()
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:], resolution=100)
    return file.getvalue()
