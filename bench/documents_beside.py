"""A4 pages read by us and by llama.cpp's server: the same random weights, pages, tiles and lengths.

Ours is `ivl.read` on a PDF; its pages are drawn and cut within the time. Theirs gets the same
pages, drawn beforehand, all at once. Its settings are the best of those that are tried with small
pages.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import ivl
from bench.page_limit import PageWork, Processor
from bench.random_gguf import write_pair
from bench.serve_clients import SYSTEM
from bench.serve_processes import cpu_seconds, llama_server
from ivl.config import ModelConfig
from ivl.documents.page_talks import MOST_JOBS
from ivl.documents.prompts import question_of
from ivl.host import usable_cores
from ivl.pages.reader import open_pages
from ivl.prompt.tiles import choose_grid, num_tiles_with_thumbnail
from training.contents import build
from training.pdf_writer import PdfPage, write_pdf
from training.sheets import set_sheet

A4_PT, A4_PX, TILE_PX = (595.0, 842.0), (1240, 1754), 448
PEER_SETTINGS = ("1,2048,512", "4,2048,512", "8,2048,512", "16,2048,512", "16,2048,2048")
"""Seats (-np), and how many tokens it takes at once (-b, -ub)."""
TARGET = 4.0
"""So many times the pages a second of llama-server shall we read."""
PEER_S = 7200
TEXT_TOKENS = 128
"""Room for the words of the prompt and the template."""


@dataclass(slots=True)
class Side:
    """What was seen of a program: seconds of each round, on the clock and of all cores together,
    and tokens of the prompts."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)

    def note(self, seconds: float, cpu_s: float, prompt_tokens: list[int]) -> None:
        self.seconds.append(seconds)
        self.cpu_s.append(cpu_s)
        self.prompt_tokens += prompt_tokens


@dataclass(frozen=True, slots=True)
class Files:
    """A pair of GGUF files."""

    text: Path
    mmproj: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of llama-server: -np, -b and -ub."""

    parallel: int
    batch: int
    micro_batch: int

    @classmethod
    def of(cls, text: str) -> Settings:
        parts = [int(part) for part in text.split(",")]
        if len(parts) != 3:
            raise SystemExit(f"error: {text!r} is not -np, -b and -ub, such as 4,2048,512")
        return cls(parallel=parts[0], batch=parts[1], micro_batch=parts[2])

    @property
    def options(self) -> tuple[str, ...]:
        return ("--batch-size", str(self.batch), "--ubatch-size", str(self.micro_batch))

    def __str__(self) -> str:
        return f"-np {self.parallel} -b {self.batch} -ub {self.micro_batch}"


def beside(options: argparse.Namespace) -> None:
    """Tries the peer's settings, reads all pages with both by turns, and prints the table."""
    # llama.cpp has no option for the number of tiles, and takes what the file says.
    text, mmproj = write_pair(
        options.shape, options.type, "F16", options.folder, max_tiles=options.max_tiles
    )
    threads = options.threads or usable_cores().threads
    files = Files(text, mmproj)
    model = load(options, files)
    tiles = tiles_of_a4(model.config, options.max_tiles)
    context = tiles * model.config.tokens_per_tile + TEXT_TOKENS + options.answer_tokens
    with tempfile.TemporaryDirectory(prefix="ivl-documents-") as folder:
        document = Path(folder) / "pages.pdf"
        document.write_bytes(write_pdf(a4_pages(options.pages, options.seed)))
        drawn = [page.load().resize(A4_PX) for page in open_pages(str(document))]
        question = question_of("text")
        peer = Peer(options.beside, files, context, threads, question, options.answer_tokens)
        small = [image.resize((TILE_PX, TILE_PX)) for image in drawn[: options.trial_pages]]
        best = peer.best([Settings.of(one) for one in options.peer or PEER_SETTINGS], small)
        ours, theirs = Side(), Side()
        with peer.started(best) as server:
            peer.ask(server, small[:1])  # warms up
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
                if number % 2 == 0:
                    read_here(options, files, document, ours)
                    theirs.note(*peer.ask(server, drawn))
                else:
                    theirs.note(*peer.ask(server, drawn))
                    read_here(options, files, document, ours)
    print("\n".join(report(options, model, best, ours, theirs)))


def load(options: argparse.Namespace, files: Files) -> ivl.Model:
    return ivl.load(files.text, mmproj=files.mmproj, threads=options.threads, vision=options.vision)


def read_here(options: argparse.Namespace, files: Files, document: Path, side: Side) -> None:
    """One round of ours, loading not counted."""
    model = load(options, files)
    began, cpu_began = time.perf_counter(), time.process_time()
    results = list(
        ivl.read(
            str(document),
            model=model,
            jobs=options.jobs[0] if options.jobs else None,
            max_tiles=options.max_tiles,
            max_tokens=options.answer_tokens,
            system=SYSTEM,
            retry=False,
            skip_blank=False,
            rotate=False,
            text_layer="ignore",
        )
    )
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    answers = [result.answer for result in results if result.answer is not None]
    if [len(answer.tokens) for answer in answers] != [options.answer_tokens] * options.pages:
        raise SystemExit("error: ivl wrote answers of another length")
    side.note(seconds, cpu_s, [answer.timings.num_prompt_tokens for answer in answers])


def report(
    options: argparse.Namespace, model: ivl.Model, best: Settings, ours: Side, theirs: Side
) -> list[str]:
    """The table, and what each program was given."""
    processor = Processor(model)
    pages, rounds = options.pages, options.rounds
    tiles = tiles_of_a4(model.config, options.max_tiles)
    work = PageWork(
        tiles=tiles,
        prompt_tokens=statistics.mean(ours.prompt_tokens),
        answer_tokens=options.answer_tokens,
    )
    limit = processor.limit(work, at_once=options.jobs[0] if options.jobs else MOST_JOBS)
    rates = [pages / statistics.median(side.seconds) for side in (ours, theirs)]
    cpu_s = [statistics.median(side.cpu_s) / pages for side in (ours, theirs)]
    ratio = statistics.median(t / m for m, t in zip(ours.seconds, theirs.seconds, strict=True))
    return [
        f"shape {options.shape}, {options.type}, random weights, tower {options.vision}; "
        f"{pages} A4 pages of {tiles} tiles, {options.answer_tokens} tokens each, "
        f"medians of {rounds} rounds by turns; llama-server {best}",
        "",
        "| program | pages/s | s a page | core s a page | tokens of a prompt "
        "| times llama-server | at least |",
        "|---|---|---|---|---|---|---|",
        f"| ivl | {rates[0]:.3f} | {1 / rates[0]:.2f} | {cpu_s[0]:.2f} "
        f"| {statistics.mean(ours.prompt_tokens):.0f} | {ratio:.2f} | {TARGET:g} |",
        f"| llama-server | {rates[1]:.3f} | {1 / rates[1]:.2f} | {cpu_s[1]:.2f} "
        f"| {statistics.mean(theirs.prompt_tokens):.0f} | | |",
        f"| limit | {1 / limit.total_s:.3f} | {limit.total_s:.2f} | | | | |",
        "",
        f"of the limit, s a page: tiles {limit.encode_s:.2f}, prompt {limit.read_s:.2f}, "
        f"answer {limit.write_s:.2f}",
        processor.describe(),
    ]


def tiles_of_a4(config: ModelConfig, max_tiles: int) -> int:
    return num_tiles_with_thumbnail(choose_grid(A4_PX, config, max_tiles), config.use_thumbnail)


def a4_pages(count: int, seed: int) -> list[PdfPage]:
    """Letters of up to 25 lines, each as large as a sheet of A4 allows."""
    pages = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        sheet = set_sheet(rng, build(rng, "letter", "eval", 25))
        scale = min(A4_PT[0] / sheet.size_pt[0], A4_PT[1] / sheet.size_pt[1])
        texts = [
            dataclasses.replace(t, x=t.x * scale, y=t.y * scale, size_pt=t.size_pt * scale)
            for t in sheet.texts
        ]
        pages.append(PdfPage(size_pt=A4_PT, texts=tuple(texts)))
    return pages


class Peer:
    """llama-server, and how it is asked."""

    def __init__(
        self,
        program: Path,
        files: Files,
        context: int,
        threads: int,
        question: str,
        answer_tokens: int,
    ) -> None:
        """context: tokens of each seat."""
        self._program, self._files = program, files
        self._context, self._threads = context, threads
        self._question, self._answer_tokens = question, answer_tokens

    def started(self, settings: Settings) -> AbstractContextManager[tuple[str, int]]:
        """A server with these settings, which is ready: its address and its process id."""
        return llama_server(
            self._program,
            str(self._files.text),
            str(self._files.mmproj),
            parallel=settings.parallel,
            context=self._context,
            threads=self._threads,
            more=settings.options,
        )

    def best(self, tried: list[Settings], pages: list[Image.Image]) -> Settings:
        """The quickest settings for small pages, each tried once."""
        if len(tried) == 1:
            return tried[0]
        print("| llama-server | pages of one tile/s |\n|---|---|")
        found = []
        for settings in tried:
            with self.started(settings) as server:
                self.ask(server, pages[:1])  # warms up
                seconds, _, _ = self.ask(server, pages)
            found.append((seconds, settings))
            print(f"| {settings} | {len(pages) / seconds:.3f} |", flush=True)
        print()
        return min(found, key=lambda one: one[0])[1]

    def ask(
        self, server: tuple[str, int], pages: list[Image.Image]
    ) -> tuple[float, float, list[int]]:
        """All pages at once: seconds on the clock, and of all cores; tokens of their prompts."""
        url, process_id = server
        bodies = [self._body(page) for page in pages]
        began, cpu_began = time.perf_counter(), cpu_seconds(process_id)
        usages = asyncio.run(_all_of(url, bodies))
        seconds, cpu_s = time.perf_counter() - began, cpu_seconds(process_id) - cpu_began
        if any(usage["completion_tokens"] != self._answer_tokens for usage in usages):
            raise SystemExit("error: llama-server wrote answers of another length")
        return seconds, cpu_s, [usage["prompt_tokens"] for usage in usages]

    def _body(self, page: Image.Image) -> dict[str, Any]:
        file = io.BytesIO()
        page.save(file, "PNG")
        data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": data}},
            {"type": "text", "text": self._question},
        ]
        return {
            # Ours has a system message unless it is given one, and theirs has none.
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": content},
            ],
            "max_tokens": self._answer_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


async def _all_of(url: str, bodies: list[dict[str, Any]]) -> list[dict[str, int]]:
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=url, timeout=PEER_S, limits=limits) as client:

        async def one(body: dict[str, Any]) -> dict[str, int]:
            answer = await client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200:
                raise SystemExit(f"error: llama-server refused a page: {answer.text[:500]}")
            return answer.json()["usage"]

        return list(await asyncio.gather(*(one(body) for body in bodies)))
