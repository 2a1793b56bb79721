"""What requests leave behind: nothing, however they end."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections import Counter
from itertools import pairwise
from typing import Any

import httpx
import pytest

from ivl.engine.engine import EngineLimits
from ivl.engine.request import EngineRequest
from tests.server.conftest import (
    TIMEOUT_S,
    RunningServer,
    ask_at_once,
    data_url,
    png,
    running,
)

ROUND = 12
NO_LEAKS = ("logging.LogRecord", "asyncio.events.TimerHandle", "_contextvars.Context")
"""pytest keeps what a test logs; asyncio keeps a hundred timers that were cancelled, each with its
context, before it sweeps them out."""


def ask_in_every_way(server: RunningServer) -> None:
    """Answered, streamed, left, refused: each with the same pictures, several at once."""
    picture = {"type": "image_url", "image_url": {"url": data_url(png((90, 50), "red"))}}
    content = [picture, {"type": "text", "text": "Go on."}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 6}
    form = {**body, "structured_outputs": {"regex": "[a-z]{4}"}}

    def whole() -> None:
        assert server.post("/v1/chat/completions", form).status_code == 200
        assert server.post("/v1/chat/completions", {**body, "no_such": 1}).status_code == 400
        broken = {"type": "image_url", "image_url": {"url": data_url(b"no picture")}}
        bad = {**body, "messages": [{"role": "user", "content": [broken]}]}
        assert server.post("/v1/chat/completions", bad).status_code == 400

    def stream(leaves: bool) -> None:
        sent = {**body, "stream": True, "max_tokens": 300 if leaves else 6}
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=sent, timeout=TIMEOUT_S) as answer:
            for line in answer.iter_lines():
                if leaves and line.startswith("data: {") and json.loads(line[6:]):
                    return

    jobs = [threading.Thread(target=whole) for _ in range(ROUND)]
    jobs += [threading.Thread(target=stream, args=[n % 2 == 0]) for n in range(ROUND)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(TIMEOUT_S)
    server.wait_until_idle()


def live_objects() -> Counter[str]:
    """How many objects of each type there are, of all that the collector knows."""
    gc.collect()
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


def test_requests_leave_no_objects_behind(tiny: Any) -> None:
    limits = EngineLimits(for_many=True, kv_tokens=16 * 512, max_queued=64)
    with running(tiny, limits=limits) as server:
        counts = []
        for _ in range(5):  # in the first, caches, counters and pools of threads are filled
            ask_in_every_way(server)
            counts.append(live_objects())
        state = server.service.state()
        assert state.tile_bytes == state.num_waiting == state.num_running == 0
    growths = [after - before for before, after in pairwise(counts[2:])]
    leaked = {name: n for name, n in growths[0].items() if min(n, growths[1][name]) >= ROUND // 2}
    for name in NO_LEAKS:
        leaked.pop(name, None)
    assert not leaked, "every round leaves objects of its requests"


def test_pictures_that_wait_are_bounded(tiny: Any) -> None:
    """Beyond so many bytes of tiles the answer is 429, however few requests there are."""
    picture = {"type": "image_url", "image_url": {"url": data_url(png((50, 50)))}}
    content = [picture, {"type": "text", "text": "Go on."}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 300}
    tile = tiny.engine.config.tile_px**2 * 3
    limits = EngineLimits(for_many=True, kv_tokens=4096, max_queued=64, max_tile_bytes=2 * tile)
    with running(tiny, limits=limits) as server:
        answers = ask_at_once(server, body, 8)
        assert {answer.status_code for answer in answers} == {200, 429}
        assert server.post("/v1/chat/completions", body).status_code == 200


def test_pictures_go_with_their_request(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, without the collector: between two of its runs there can be a gigabyte of them."""
    tiles: list[weakref.ref[Any]] = []
    chat = EngineRequest.chat.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, *given: Any, **named: Any) -> EngineRequest:
        request = chat(cls, *given, **named)
        tiles.append(weakref.ref(request.tiles[0].pixels))
        return request

    monkeypatch.setattr(EngineRequest, "chat", classmethod(noted))
    picture = {"type": "image_url", "image_url": {"url": data_url(png((90, 50), "red"))}}
    content = [picture, {"type": "text", "text": "Go on."}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 6}
    with running(tiny) as server:
        gc.collect()
        gc.disable()
        try:
            for more in ({}, {"n": 2}, {"structured_outputs": {"regex": "[a-z]{4}"}}):
                assert server.post("/v1/chat/completions", {**body, **more}).status_code == 200
            url = f"{server.url}/v1/chat/completions"
            for most in (6, 300):
                sent = {**body, "stream": True, "max_tokens": most}
                with httpx.stream("POST", url, json=sent, timeout=TIMEOUT_S) as answer:
                    for line in answer.iter_lines():
                        if most == 300 and line:
                            break
            refused = server.post("/v1/chat/completions", {**body, "logit_bias": {"99999": 1}})
            assert refused.status_code == 400
            server.wait_until_idle()
            until = time.monotonic() + 5
            while any(one() is not None for one in tiles) and time.monotonic() < until:
                time.sleep(0.01)
            assert [one() is None for one in tiles] == [True] * 5
        finally:
            gc.enable()
