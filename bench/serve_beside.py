"""Our server and llama.cpp's beside each other: the same weights, the same questions, by turns."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.serve_clients import (
    Outcome,
    Question,
    first_tokens_s,
    middle,
    percentile,
    rate_while_all_write,
    together,
)
from bench.serve_processes import ivl_server, llama_server
from ivl.host import usable_cores

# What only llama.cpp knows: with it, random weights write as long as they are asked to.
LLAMA_ONLY = {"ignore_eos": True}
CONTEXT = 2048


@dataclass
class Side:
    """A server, and what its clients have seen in all rounds."""

    name: str
    url: str
    question: Question
    whole_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def round(self, count: int, salt: int) -> None:
        began = time.perf_counter()
        outcomes = asyncio.run(together(self.url, self.question, count, salt))
        self.whole_s.append(time.perf_counter() - began)
        self.rates.append(rate_while_all_write(outcomes))
        self.outcomes += outcomes

    @property
    def tokens_per_s(self) -> float:
        """All that was written, by all the time that it took, reading included."""
        return sum(outcome.num_tokens for outcome in self.outcomes) / sum(self.whole_s)

    def row(self) -> str:
        firsts = first_tokens_s(self.outcomes)
        prompt = middle([outcome.num_prompt_tokens for outcome in self.outcomes])
        return (
            f"{self.name:12}   {prompt:6.0f}   {self.tokens_per_s:8.1f}   "
            f"{middle(self.rates):9.1f}   {middle(firsts):9.2f}   {percentile(firsts, 95):9.2f}"
        )


def beside(
    program: Path, model: str, mmproj: str | None, question: Question, count: int, rounds: int
) -> None:
    """Prints a table of `rounds` rounds by turns, `count` clients at once in each."""
    threads = usable_cores().threads
    with ExitStack() as stack:
        url, _ = stack.enter_context(ivl_server(model, mmproj, more=("--context", str(CONTEXT))))
        ours = Side("ivl", url, question)
        url, _ = stack.enter_context(
            llama_server(program, model, mmproj, parallel=count, context=CONTEXT, threads=threads)
        )
        theirs = Side("llama-server", url, replace(question, more=LLAMA_ONLY))
        sides = [ours, theirs]
        for side in sides:
            asyncio.run(together(side.url, side.question, 1, -1))  # warms up
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                side.round(count, number)
    images = (
        f", {question.num_images} images of {question.image_px} px" if question.num_images else ""
    )
    print(
        f"{count} clients at once, {question.words} words{images} and {question.tokens} tokens "
        f"each, {rounds} rounds by turns, {threads} threads"
    )
    print("server         prompt   tokens/s   written/s   p50 first   p95 first")
    for side in sides:
        print(side.row())
    firsts = [percentile(first_tokens_s(side.outcomes), 95) for side in sides]
    print(
        f"ivl is {ours.tokens_per_s / theirs.tokens_per_s:.2f} times as fast in tokens/s, "
        f"{firsts[1] / firsts[0]:.2f} times in p95 to the first token"
    )
