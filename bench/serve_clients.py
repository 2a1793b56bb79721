"""Clients of a server: they stream one answer each, and note when its pieces came."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image, ImageDraw

TIMEOUT_S = 300
SYSTEM = "You answer questions about images and texts."


@dataclass
class Outcome:
    """What became of one request; times in seconds since it was sent."""

    kind: str = "lost"
    first_token_s: float | None = None
    pieces_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    num_prompt_tokens: int = 0
    num_tokens: int = 0


POISONS = (
    *("temperature", "penalty", "schema", "image", "no image", "body", "stops", "vanishing"),
    *("vanishing at once", "unknown"),
)
"""What may be wrong with a request; see `ask_with_poison`."""
KINDS = {429: "refused", 400: "rejected"}
CACHES = {
    "ivl_kv_bytes": "keys, values",
    "ivl_vision_cache_bytes": "features",
    "ivl_tile_bytes": "tiles",
}
"""Gauges of the server, and what they count: the cache, kept features, pictures of the queue."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What each client of `together` sends: so many random words, so many pictures of one size;
    `more`: fields of the body that only some servers know."""

    words: int
    tokens: int
    num_images: int = 0
    image_px: int = 448
    more: dict[str, Any] = field(default_factory=dict)


async def ask(client: httpx.AsyncClient, body: dict[str, Any], leaves_after: int | None) -> Outcome:
    """Streams one answer; goes away after `leaves_after` pieces."""
    outcome, began, num_pieces = Outcome(), time.perf_counter(), 0
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=sent) as answer:
            if answer.status_code != 200:
                outcome.kind = KINDS.get(answer.status_code, "failed")
                return outcome
            async for line in answer.aiter_lines():
                if leaves_after is not None and num_pieces >= leaves_after:
                    outcome.kind = "vanished"
                    return outcome
                if not line.startswith("data: {"):
                    continue
                now = time.perf_counter() - began
                num_pieces += _take(json.loads(line[6:]), outcome, now)
    except httpx.HTTPError as error:
        print(f"lost: {error!r}", file=sys.stderr)
        outcome.kind = "lost"
    outcome.total_s = time.perf_counter() - began
    return outcome


async def ask_with_poison(client: httpx.AsyncClient, body: dict[str, Any], poison: str) -> Outcome:
    """One answer to a request with which something is wrong: what it gets does not count, as long
    as it gets it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    raw = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}]
    plain = {name: value for name, value in body.items() if name != "structured_outputs"}
    changed: dict[str, dict[str, Any]] = {
        "temperature": {**plain, "temperature": 1e-46},
        "penalty": {**plain, "temperature": 1, "repetition_penalty": 1e-300},
        "schema": {**body, "structured_outputs": {"regex": "(" * 50}},
        "image": {**body, "messages": messages},
        "no image": {**body, "messages": [{"role": "user", "content": [raw]}]},
        "stops": {**body, "stop": ["x"] * 10_000},
        "unknown": {**body, "no_such_field": 1},
    }
    if poison == "vanishing":
        return await ask(client, body, 2)
    if poison == "vanishing at once":
        return await ask(client, body, 0)
    if poison == "body":
        answer = await client.post("/v1/chat/completions", content=b'{"messages": [')
        return Outcome(kind=KINDS.get(answer.status_code, "failed"))
    return await ask(client, changed[poison], None)


async def cache_bytes(client: httpx.AsyncClient) -> dict[str, int]:
    """What the server's caches hold now, by its own account."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = {}
    for metric, name in CACHES.items():
        values = [float(line.split()[-1]) for line in lines if line.startswith(metric + "{")]
        found[name] = int(sum(values))
    return found


def _take(chunk: dict[str, Any], outcome: Outcome, now: float) -> int:
    """One event of a stream; 1 if it brought text."""
    if "error" in chunk:
        outcome.kind = "failed"
        return 0
    if usage := chunk.get("usage"):
        outcome.num_tokens = usage["completion_tokens"]
        outcome.num_prompt_tokens = usage["prompt_tokens"]
    choices = chunk.get("choices") or [{}]
    if choices[0].get("finish_reason"):
        outcome.kind = "answered"
    if not (choices[0].get("delta") or {}).get("content"):
        return 0
    outcome.first_token_s = outcome.first_token_s or now
    outcome.pieces_s.append(now)
    return 1


async def together(url: str, question: Question, count: int, salt: int) -> list[Outcome]:
    """So many clients at once. SystemExit when one has no answer."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        bodies = [_body(question, 1000 * salt + index) for index in range(count)]
        outcomes = list(await asyncio.gather(*(ask(client, body, None) for body in bodies)))
    if any(outcome.kind != "answered" for outcome in outcomes):
        raise SystemExit(f"error: {[outcome.kind for outcome in outcomes]}")
    return outcomes


def _body(question: Question, number: int) -> dict[str, Any]:
    """A text and pictures that nobody else sends: no prefix is shared but the system message."""
    rng = random.Random(number)
    text = " ".join(str(rng.randrange(10_000)) for _ in range(question.words))
    content: Any = text
    if question.num_images:
        urls = [data_url(rng, (question.image_px,) * 2) for _ in range(question.num_images)]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*images, {"type": "text", "text": text}]
    # Ours has a system message unless it is given one, and theirs has none.
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    body = {"messages": messages, "max_tokens": question.tokens, "temperature": 0}
    return {**body, **question.more}


def first_tokens_s(outcomes: Sequence[Outcome]) -> list[float]:
    """Times to the first token, in their order."""
    return sorted(o.first_token_s for o in outcomes if o.first_token_s is not None)


def rate_while_all_write(outcomes: Sequence[Outcome]) -> float:
    """Tokens a second from the last first piece to the first last one: prompts do not count."""
    begin = max(outcome.pieces_s[0] for outcome in outcomes)
    end = min(outcome.pieces_s[-1] for outcome in outcomes)
    tokens = 0.0
    for outcome in outcomes:
        within = sum(begin < when <= end for when in outcome.pieces_s)
        tokens += within * outcome.num_tokens / len(outcome.pieces_s)
    return tokens / (end - begin) if end > begin else float("nan")


def percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def middle(numbers: Sequence[float]) -> float:
    return statistics.median(numbers)


def data_url(rng: random.Random, size: tuple[int, int]) -> str:
    """A picture of its own, so that few are known to the server."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(20):
        place = (rng.randrange(size[0]), rng.randrange(size[1]))
        draw.text(place, str(rng.random()), fill="black")
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
