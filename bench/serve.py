"""A server under load, from many clients at once.

    python -m bench.serve [--clients 64] [--seconds 120] [--model demo]
    python -m bench.serve --decodes 1 4 16 [--tokens 64] --model FILE
    python -m bench.serve --decodes 1 16 --url http://127.0.0.1:8080 [--label llama-server]

Without --decodes, requests arrive at random moments (poisson), with text alone and with images of
several sizes; one client in ten goes away in the middle. Every request must end in an answer, a
refusal (429), or its own departure. With --decodes, so many clients at once have answers of one
length written, each about a text of its own. --url measures a server that runs already.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

from bench.shapes import commit, machine

SIZES_PX = ((300, 200), (640, 480), (1240, 1754), (2000, 800), (448, 448))
VANISHING = 0.1
TIMEOUT_S = 300


@dataclass
class Outcome:
    """What became of one request; times in seconds since it was sent."""

    kind: str = "lost"
    first_token_s: float | None = None
    pieces_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    num_tokens: int = 0


@dataclass
class Load:
    outcomes: list[Outcome] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


def main() -> None:
    options = parse_options()
    if options.url:
        print_heading()
        run_decodes(options, options.url)
        return
    with serving(options) as (url, process_id):
        print_heading()
        if options.decodes:
            run_decodes(options, url)
            return
        load = asyncio.run(arrivals(options, url, process_id))
    report(load, options.seconds)
    if any(outcome.kind in ("lost", "failed") for outcome in load.outcomes):
        raise SystemExit("error: requests were lost")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A server under load.")
    parser.add_argument("--model", default="demo", help="as of `ivl serve`")
    parser.add_argument("--mmproj", help="as of `ivl serve`")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, in the mean")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--decodes", type=int, nargs="+", help="numbers of clients at once")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--words", type=int, default=4, help="of a prompt, with --decodes")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--label", default="ivl", help="its name in the table")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def print_heading() -> None:
    print(f"$ python -m bench.serve {' '.join(sys.argv[1:])}")
    print(f"{machine()}, commit {commit()}")


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """A server of our own; its address and its process id."""
    command = [sys.executable, "-m", "ivl.cli.main", "serve", "--model", options.model]
    command += ["--port", "0", "--max-queued", "256"]
    command += ["--mmproj", options.mmproj] if options.mmproj else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if found := re.search(r"listening on (\S+)", line):
            url = found[1]
        if " ready: " in line:
            break
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        if process.poll() is not None or not url:
            raise SystemExit("error: the server did not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)
        drain.wait(10)


async def arrivals(options: argparse.Namespace, url: str, process_id: int) -> Load:
    """Requests at random moments from at most `clients` clients, for `seconds`."""
    rng, load = random.Random(options.seed), Load()
    pictures = [data_url(rng, size) for size in SIZES_PX for _ in range(4)]
    seats = asyncio.Semaphore(options.clients)
    limits = httpx.Limits(max_connections=2 * options.clients)
    began = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:

        async def one(body: dict[str, Any], leaves_after: int | None) -> None:
            async with seats:
                load.outcomes.append(await ask(client, body, leaves_after))

        while (now := time.perf_counter() - began) < options.seconds:
            await asyncio.sleep(rng.expovariate(options.rate))
            if len(tasks) < 2 * options.clients:
                leaves = rng.randrange(3) if rng.random() < VANISHING else None
                task = asyncio.create_task(one(random_body(rng, pictures), leaves))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if not load.memory or now - load.memory[-1][0] > 1:
                load.memory.append((now, resident_bytes(process_id)))
        await asyncio.gather(*tasks)
    return load


def random_body(rng: random.Random, pictures: list[str]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": f"Question {rng.randrange(1000)}?"}]
    for _ in range(rng.choice([0, 1, 1, 2])):
        content.append({"type": "image_url", "image_url": {"url": rng.choice(pictures)}})
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": rng.choice([8, 32, 64]),
        # So that answers have their length, whatever the model thinks of noise.
        "structured_outputs": {"regex": "[a-z ]{80}"},
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any], leaves_after: int | None) -> Outcome:
    """Streams one answer; goes away after `leaves_after` pieces."""
    outcome, began, num_pieces = Outcome(), time.perf_counter(), 0
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=sent) as answer:
            if answer.status_code != 200:
                outcome.kind = "refused" if answer.status_code == 429 else "failed"
                return outcome
            async for line in answer.aiter_lines():
                if leaves_after is not None and num_pieces >= leaves_after:
                    outcome.kind = "vanished"
                    return outcome
                if not line.startswith("data: {"):
                    continue
                now = time.perf_counter() - began
                num_pieces += take(json.loads(line[6:]), outcome, now)
    except httpx.HTTPError as error:
        print(f"lost: {error!r}", file=sys.stderr)
        outcome.kind = "lost"
    outcome.total_s = time.perf_counter() - began
    return outcome


def take(chunk: dict[str, Any], outcome: Outcome, now: float) -> int:
    """One event of a stream; 1 if it brought text."""
    if "error" in chunk:
        outcome.kind = "failed"
        return 0
    if usage := chunk.get("usage"):
        outcome.num_tokens = usage["completion_tokens"]
    choices = chunk.get("choices") or [{}]
    if choices[0].get("finish_reason"):
        outcome.kind = "answered"
    if not (choices[0].get("delta") or {}).get("content"):
        return 0
    outcome.first_token_s = outcome.first_token_s or now
    outcome.pieces_s.append(now)
    return 1


def run_decodes(options: argparse.Namespace, url: str) -> None:
    """Tokens a second of so many clients at once."""
    print(f"{options.label}, {options.tokens} tokens each")
    print("clients   written/s   of one   p50 first   p95 first   whole s")
    alone = 0.0
    asyncio.run(together(options, url, 1, -1))  # warms up
    for count in options.decodes:
        began = time.perf_counter()
        outcomes = asyncio.run(together(options, url, count, count))
        whole_s = time.perf_counter() - began
        if any(outcome.kind != "answered" for outcome in outcomes):
            raise SystemExit(f"error: {[outcome.kind for outcome in outcomes]}")
        firsts = sorted(outcome.first_token_s or 0 for outcome in outcomes)
        rate = rate_while_all_write(outcomes)
        alone = alone or rate
        print(
            f"{count:7}   {rate:9.1f}   {rate / alone:6.2f}   {statistics.median(firsts):9.2f}   "
            f"{percentile(firsts, 95):9.2f}   {whole_s:7.2f}"
        )


def rate_while_all_write(outcomes: list[Outcome]) -> float:
    """Tokens a second from the last first piece to the first last one: prompts do not count."""
    begin = max(outcome.pieces_s[0] for outcome in outcomes)
    end = min(outcome.pieces_s[-1] for outcome in outcomes)
    tokens = 0.0
    for outcome in outcomes:
        within = sum(begin < when <= end for when in outcome.pieces_s)
        tokens += within * outcome.num_tokens / len(outcome.pieces_s)
    return tokens / (end - begin) if end > begin else float("nan")


async def together(options: argparse.Namespace, url: str, count: int, salt: int) -> list[Outcome]:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        bodies = [decode_body(options, 1000 * salt + index) for index in range(count)]
        return list(await asyncio.gather(*(ask(client, body, None) for body in bodies)))


def decode_body(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """A text that nobody else sends, so that no prefix is shared but the system message."""
    rng = random.Random(number)
    text = " ".join(str(rng.randrange(10_000)) for _ in range(options.words))
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": options.tokens, "temperature": 0}


def report(load: Load, seconds: float) -> None:
    kinds = [outcome.kind for outcome in load.outcomes]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    print(f"requests     {len(kinds)}: {counts}")
    answered = [outcome for outcome in load.outcomes if outcome.kind == "answered"]
    firsts = sorted(o.first_token_s for o in answered if o.first_token_s is not None)
    written = sum(outcome.num_tokens for outcome in load.outcomes)
    print(f"written      {written / seconds:.0f} tokens/s in all")
    print(
        f"first token  {statistics.median(firsts):.2f} s in the middle, "
        f"{percentile(firsts, 95):.2f} s for 95 of 100"
    )
    half = [size for when, size in load.memory if when >= seconds / 2]
    print(
        f"memory       {load.memory[0][1] / 1e6:.0f} MB at first, {half[0] / 1e6:.0f} MB after "
        f"half of the time, {half[-1] / 1e6:.0f} MB at the end"
    )


def percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


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


def resident_bytes(process_id: int) -> int:
    """Memory of a process that is its own (Linux)."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
