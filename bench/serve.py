"""A server under load, from many clients at once.

    python -m bench.serve [--clients 64] [--seconds 120] [--model demo]
    python -m bench.serve --decodes 1 4 16 [--tokens 64] --model FILE
    python -m bench.serve --decodes 1 16 --url http://127.0.0.1:8080 [--label llama-server]
    python -m bench.serve --beside PATH/llama-server --model FILE [--mmproj FILE --images 1]

Without --decodes, requests arrive at random moments (poisson), with text alone and with images of
several sizes. One in ten is poisoned: numbers that underflow, pictures and bodies that are broken,
clients that go away in the middle. Those may be refused; every other request must end in an answer,
or in a 429. Memory is shown beside the caches, whose bytes the server tells. With
--decodes, so many clients at once have answers of one
length written, each about a text of its own. --url measures a server that runs already. --beside
starts llama.cpp's server too, and asks both the same questions by turns.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.serve_clients import (
    POISONS,
    TIMEOUT_S,
    Outcome,
    Question,
    ask,
    ask_with_poison,
    cache_bytes,
    data_url,
    first_tokens_s,
    middle,
    percentile,
    rate_while_all_write,
    together,
)
from bench.serve_processes import ivl_server, resident_bytes
from bench.shapes import commit, machine

SIZES_PX = ((300, 200), (640, 480), (1240, 1754), (2000, 800), (448, 448))
POISONED = 0.1
FLAT = 0.05
"""So much may memory beside the caches grow in the second half of a run."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the server's process after so many seconds, and of its caches by their names."""

    seconds: float
    resident: int
    caches: dict[str, int]

    @property
    def beside(self) -> int:
        return self.resident - sum(self.caches.values())


@dataclass
class Load:
    outcomes: list[Outcome] = field(default_factory=list)
    poisoned: list[Outcome] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


def main() -> None:
    options = parse_options()
    # The servers go too when this program has to go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"error: not done in {options.limit} s"))
    signal.alarm(options.limit)
    print_heading()
    question = Question(
        words=options.words,
        tokens=options.tokens,
        num_images=options.images,
        image_px=options.image_px,
    )
    if options.beside:
        from bench.serve_beside import beside

        count, rounds = options.decodes or [16], options.rounds
        beside(options.beside, options.model, options.mmproj, question, count[0], rounds)
        return
    if options.url:
        run_decodes(options, question, options.url)
        return
    if options.draft:
        for label, more in (("alone", ()), ("guessing", ("--draft", options.draft))):
            options.label = label
            with ivl_server(options.model, options.mmproj, more=more) as (url, _):
                run_decodes(options, question, url)
        return
    with ivl_server(options.model, options.mmproj) as (url, process_id):
        if options.decodes:
            run_decodes(options, question, url)
            return
        load = asyncio.run(arrivals(options, url, process_id))
    report(load, options.seconds)
    if any(outcome.kind not in ("answered", "refused") for outcome in load.outcomes):
        raise SystemExit("error: requests were lost")
    if any(outcome.kind == "lost" for outcome in load.poisoned):
        raise SystemExit("error: a poisoned request has no answer")


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
    parser.add_argument("--images", type=int, default=0, help="of a prompt, with --decodes")
    parser.add_argument("--image-px", type=int, default=448, help="side of an image")
    parser.add_argument(
        "--draft", help="as of `ivl serve`, with --decodes: without it, and with it"
    )
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--label", default="ivl", help="its name in the table")
    parser.add_argument("--beside", type=Path, metavar="PROGRAM", help="llama.cpp's llama-server")
    parser.add_argument("--rounds", type=int, default=3, help="of each server, with --beside")
    parser.add_argument("--limit", type=int, default=600, help="seconds for all of it")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if (options.draft or options.url) and not (options.decodes or options.beside):
        parser.error("--draft and --url are for --decodes")
    return options


def print_heading() -> None:
    print(f"$ python -m bench.serve {' '.join(sys.argv[1:])}")
    print(f"{machine()}, commit {commit()}", flush=True)


async def arrivals(options: argparse.Namespace, url: str, process_id: int) -> Load:
    """Requests at random moments from at most `clients` clients, for `seconds`."""
    rng, load = random.Random(options.seed), Load()
    pictures = [data_url(rng, size) for size in SIZES_PX for _ in range(4)]
    seats = asyncio.Semaphore(options.clients)
    limits = httpx.Limits(max_connections=2 * options.clients)
    began = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:

        async def one(body: dict[str, Any], poison: str | None) -> None:
            async with seats:
                if poison is None:
                    load.outcomes.append(await ask(client, body, None))
                else:
                    load.poisoned.append(await ask_with_poison(client, body, poison))

        while (now := time.perf_counter() - began) < options.seconds:
            await asyncio.sleep(rng.expovariate(options.rate))
            if len(tasks) < 2 * options.clients:
                poison = rng.choice(POISONS) if rng.random() < POISONED else None
                task = asyncio.create_task(one(random_body(rng, pictures), poison))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if not load.memory or now - load.memory[-1].seconds > 1:
                resident = resident_bytes(process_id)
                load.memory.append(Memory(now, resident, await cache_bytes(client)))
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


def run_decodes(options: argparse.Namespace, question: Question, url: str) -> None:
    """Tokens a second of so many clients at once."""
    print(f"{options.label}, {options.tokens} tokens each")
    print("clients   written/s   of one   p50 first   p95 first   whole s")
    alone = 0.0
    asyncio.run(together(url, question, 1, -1))  # warms up
    for count in options.decodes:
        began = time.perf_counter()
        outcomes = asyncio.run(together(url, question, count, count))
        whole_s = time.perf_counter() - began
        if not all(outcome.pieces_s for outcome in outcomes):
            raise SystemExit(f"error: answers without a word: {kinds_of(outcomes)}")
        firsts = first_tokens_s(outcomes)
        rate = rate_while_all_write(outcomes)
        alone = alone or rate
        print(
            f"{count:7}   {rate:9.1f}   {rate / alone:6.2f}   {middle(firsts):9.2f}   "
            f"{percentile(firsts, 95):9.2f}   {whole_s:7.2f}"
        )


def report(load: Load, seconds: float) -> None:
    print(f"requests     {len(load.outcomes)}: {kinds_of(load.outcomes)}")
    print(f"poisoned     {len(load.poisoned)}: {kinds_of(load.poisoned)}")
    answered = [outcome for outcome in load.outcomes if outcome.kind == "answered"]
    firsts = first_tokens_s(answered)
    written = sum(outcome.num_tokens for outcome in load.outcomes)
    print(f"written      {written / seconds:.0f} tokens/s in all")
    print(
        f"first token  {middle(firsts):.2f} s in the middle, "
        f"{percentile(firsts, 95):.2f} s for 95 of 100"
    )
    last = load.memory[-1]
    half = next(one for one in load.memory if one.seconds >= seconds / 2)
    for name in last.caches:
        sizes = (one.caches[name] for one in (load.memory[0], half, last))
        print(f"{name:<12} {megabytes(*sizes)}")
    sizes = (one.beside for one in (load.memory[0], half, last))
    growth = last.beside / half.beside - 1
    verdict = "flat" if growth <= FLAT else f"growing: more than {FLAT:.0%} is not flat"
    print(f"beside them  {megabytes(*sizes)}: {growth:+.1%} in the second half, {verdict}")


def megabytes(first: int, half: int, last: int) -> str:
    return (
        f"{first / 1e6:.0f} MB at first, {half / 1e6:.0f} MB after half of the time, "
        f"{last / 1e6:.0f} MB at the end"
    )


def kinds_of(outcomes: list[Outcome]) -> str:
    kinds = [outcome.kind for outcome in outcomes]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


if __name__ == "__main__":
    main()
