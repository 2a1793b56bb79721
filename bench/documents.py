"""Documents with truth: pages a second, many at once beside one by one, and how they are read.

    python -m bench.documents [--pages 300 --documents 40] [--jobs 4 16] [--rounds 3] [--model demo]
    python -m bench.documents --beside PATH/llama-server --shape 1b --pages 40 --answer-tokens 300

The documents are those of `training.corpus`. In every round each number of jobs reads all of them,
in turn, with a model that is loaded anew, so that nothing is known from before; and once they are
read page by page, each in a call of its own: nothing is drawn ahead then. Medians over the rounds;
the texts of all are compared page by page. Pages are looked at first, as `ivl read` does;
with `--bare` the model reads every page as it is. `--beside` reads A4 pages with random weights,
and asks llama.cpp's server to read the same.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ivl
from bench.page_limit import PageWork, Processor
from bench.shapes import commit, machine
from ivl.documents.page_talks import MOST_JOBS
from ivl.documents.results import PageResult
from ivl.measure.metrics import edit_distance
from ivl.pages.reader import open_pages
from ivl.prompt.tiles import choose_grid, cut_tiles
from training import fonts
from training.corpus import PAGES_OF_SORT, READABLE, TruthPage, load_truth, write_corpus

READ_TOKENS = 900
"""The longest page has 700 letters; one that runs in circles is cut off."""
TARGET = 2.5
"""So many times the pages a second of one at a time shall many at once read."""


@dataclass(slots=True)
class Run:
    """A way to read. jobs: pages at once; None: as many as `ivl.read` chooses. is_ahead: one call
    for all, which draws pages ahead; otherwise one for each. Seconds of each round, on the clock
    and of all cores together, and the last round's results."""

    jobs: int | None
    is_ahead: bool = True
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    results: list[PageResult] = field(default_factory=list)

    @property
    def name(self) -> str:
        if not self.is_ahead:
            return "1, none ahead"
        return "as many as it chooses" if self.jobs is None else str(self.jobs)

    @property
    def pages_per_s(self) -> float:
        return len(self.results) / statistics.median(self.seconds)


def main() -> None:
    options = parse_options()
    # llama.cpp's server goes too when this program has to go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    print(f"$ python -m bench.documents {' '.join(sys.argv[1:])}")
    print(f"{machine()}, commit {commit()}", flush=True)
    if options.beside:
        from bench.documents_beside import beside

        beside(options)
        return
    if options.font_root is not None:
        fonts.FONT_ROOT = options.font_root
    with tempfile.TemporaryDirectory(prefix="ivl-documents-") as made:
        folder = options.corpus or Path(made)
        if options.corpus:
            truth = load_truth(folder)
        else:
            truth = write_corpus(
                folder, num_pages=options.pages, num_documents=options.documents, seed=options.seed
            )
        alternate(options, folder, truth)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="as of `ivl read`")
    parser.add_argument("--corpus", type=Path, help="made by training.corpus; else made here")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font-root", type=Path, help="where the fonts are, if not installed")
    parser.add_argument(
        "--jobs", type=int, nargs="*", default=[16], help="beside the default and 1"
    )
    parser.add_argument("--bare", action="store_true", help="nothing is blank, nothing is turned")
    parser.add_argument(
        "--text-layer", default="ignore", help="as of `ivl read`; ignored, so that pages are read"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument(
        "--vision", default="auto", help="arithmetic of the tower, as of `ivl read`"
    )
    beside = parser.add_argument_group("beside llama.cpp, with random weights")
    beside.add_argument("--beside", type=Path, metavar="PROGRAM", help="llama.cpp's llama-server")
    beside.add_argument("--shape", default="1b", help="1b or 4b")
    beside.add_argument("--type", default="Q4_K_M", help="the decoder's mix")
    beside.add_argument("--answer-tokens", type=int, default=300, help="of each page")
    beside.add_argument("--max-tiles", type=int, default=6, help="of a page, without the thumbnail")
    beside.add_argument(
        "--peer", nargs="*", metavar="NP,B,UB", help="settings to try: -np, -b and -ub of the peer"
    )
    beside.add_argument(
        "--trial-pages", type=int, default=16, help="of one tile, with which settings are tried"
    )
    beside.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ivl-bench-models",
        help="where the files of random weights are kept",
    )
    return parser.parse_args()


def alternate(options: argparse.Namespace, folder: Path, truth: Sequence[TruthPage]) -> None:
    """Reads all documents in every way, by turns, and prints the tables."""
    jobs: list[int | None] = [1, None, *(number for number in options.jobs if number != 1)]
    runs = [Run(1, is_ahead=False), *(Run(number) for number in jobs)]
    for number in range(options.rounds):
        for run in runs if number % 2 == 0 else reversed(runs):
            print(
                f"round {number + 1} of {options.rounds}, jobs {run.name}",
                file=sys.stderr,
                flush=True,
            )
            read_all(options, folder, truth, run)
    model = load(options)
    processor = Processor(model)
    pages = len(truth)
    documents = len({page.path for page in truth})
    print(f"{pages} pages in {documents} documents, medians of {options.rounds} rounds by turns")
    print("\n".join(speed_table(runs, processor)))
    print("\n".join(error_table(truth, runs[0].results)))
    print("\n".join(shares(folder, truth, model, runs[0])))
    print(processor.describe())


def load(options: argparse.Namespace) -> ivl.Model:
    return ivl.load(options.model, threads=options.threads, vision=options.vision)


def read_all(
    options: argparse.Namespace, folder: Path, truth: Sequence[TruthPage], run: Run
) -> None:
    """One round of one number of jobs, loading not counted."""
    model = load(options)
    paths = list(dict.fromkeys(page.path for page in truth))
    began, cpu_began = time.perf_counter(), time.process_time()
    pages = [page for path in paths for page in open_pages(folder / path, path)]
    run.results = [
        result
        for given in ([pages] if run.is_ahead else [[page] for page in pages])
        for result in ivl.read(
            given,
            model=model,
            jobs=run.jobs,
            max_tokens=READ_TOKENS,
            skip_blank=not options.bare,
            rotate=not options.bare,
            text_layer=options.text_layer,
        )
    ]
    run.seconds.append(time.perf_counter() - began)
    run.cpu_s.append(time.process_time() - cpu_began)
    found = [(result.path, result.number) for result in run.results]
    if found != [(page.path, page.page) for page in truth]:
        raise SystemExit("error: the results are not the pages of the corpus in their order")
    for result in run.results:
        if result.status == "failed":
            raise SystemExit(f"error: {result.path}, page {result.number}: {result.error}")


def speed_table(runs: Sequence[Run], processor: Processor) -> list[str]:
    """`runs` begin with a call for each page, and with one page at a time."""
    plain, alone = runs[:2]
    work = work_of(alone.results)
    lines = [
        "| pages at once | pages/s | limit | core s a page | of none ahead | of one at a time "
        "| at least | same text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        limit = processor.limit(work, at_once=run.jobs or MOST_JOBS).total_s
        same = sum(a.text == b.text for a, b in zip(plain.results, run.results, strict=True))
        times = [run.pages_per_s / other.pages_per_s for other in (plain, alone)]
        target = f"{TARGET}" if run.jobs != 1 else ""
        cpu_s = statistics.median(run.cpu_s) / len(run.results)
        lines.append(
            f"| {run.name} | {run.pages_per_s:.2f} | {1 / limit:.1f} | {cpu_s:.3f} "
            f"| {times[0]:.2f} | {times[1]:.2f} | {target} | {same} of {len(run.results)} |"
        )
    return lines


def work_of(results: Sequence[PageResult]) -> PageWork:
    """Of a page, in the mean over all, those that no model had to read included."""
    answers = [result.answer for result in results if result.answer is not None]
    return PageWork(
        tiles=sum(answer.timings.num_tiles for answer in answers) / len(results),
        prompt_tokens=sum(answer.timings.num_prompt_tokens for answer in answers) / len(results),
        answer_tokens=sum(len(answer.tokens) for answer in answers) / len(results),
    )


def error_table(truth: Sequence[TruthPage], results: Sequence[PageResult]) -> list[str]:
    """Errors are edit distance; those of a sort stand over all its letters."""
    lines = ["", "| pages | number | letters | error rate | remark |", "|---|---|---|---|---|"]
    pairs = list(zip(truth, results, strict=True))
    groups = [("that the model is made for", READABLE)]
    groups += [(sort, (sort,)) for sort in PAGES_OF_SORT]
    for name, sorts in groups:
        chosen = [pair for pair in pairs if pair[0].sort in sorts]
        if not chosen:
            continue
        errors = sum(edit_distance(page.text, result.text) for page, result in chosen)
        length = sum(len(page.text) for page, _ in chosen)
        if length:
            exact = sum(page.text == result.text for page, result in chosen)
            rate, remark = f"{errors / length:.1%}", f"{exact} without an error"
        else:
            left = sum(not result.text.strip() for _, result in chosen)
            rate, remark = "", f"{left} left blank, {errors} letters invented on the others"
        lines.append(f"| {name} | {len(chosen)} | {length} | {rate} | {remark} |")
    statuses = [result.status for result in results]
    counted = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    return [*lines, "", f"statuses: {counted}"]


def shares(folder: Path, truth: Sequence[TruthPage], model: ivl.Model, plain: Run) -> list[str]:
    """Where the time of a page goes, before the engine and in it, when nothing is done ahead."""
    draw_s = cut_s = pixels = 0.0
    for path in dict.fromkeys(page.path for page in truth):
        for page in open_pages(str(folder / path)):
            began = time.perf_counter()
            image = page.load()
            drawn = time.perf_counter()
            grid = choose_grid(image.size, model.config, model.config.max_tiles)
            cut_tiles(image, grid, tile_px=model.config.tile_px)
            draw_s, cut_s = draw_s + drawn - began, cut_s + time.perf_counter() - drawn
            pixels += image.width * image.height
    timings = [result.answer.timings for result in plain.results if result.answer is not None]
    whole_s = plain.seconds[-1]
    rows = [
        ("drawing", draw_s, f"{pixels / len(truth) / 1e6:.2f} million pixels a page"),
        ("cutting", cut_s, f"into tiles of {model.config.tile_px} px"),
        ("encoding", sum(t.encode_s for t in timings), ""),
        ("reading the prompt", sum(t.prefill_s for t in timings), ""),
        ("writing", sum(t.decode_s for t in timings), ""),
    ]
    rows.append(("all else", whole_s - sum(seconds for _, seconds, _ in rows), ""))
    lines = ["", "| of a page, none ahead | ms a page | share | |", "|---|---|---|---|"]
    for name, seconds, remark in rows:
        each = 1000 * seconds / len(truth)
        lines.append(f"| {name} | {each:.1f} | {seconds / whole_s:.1%} | {remark} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
