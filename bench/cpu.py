"""A model on the CPU beside llama.cpp, on the same files, in one run.

    IVL_LLAMA_CPP=build/bin python -m bench.cpu --shape 4b --type Q4_K_M [--page] [--write]

Random weights at the true shapes (bench.random_gguf). In every round both programs run in turn,
each in a process of its own, and the medians over the rounds are compared: machines are noisy, and
what disturbs a round disturbs both. Without a path to llama.cpp only our own figures are shown.

`--page` adds an A4 page, from the file to the first token. llama.cpp cuts it into more tiles than
the official code does. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bench.llama_cpp import MISSING, find_program
from bench.random_gguf import write_pair
from bench.shapes import commit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "performance.md"
SAMPLE = ROOT / "samples" / "receipt.png"
TILE_PX = 448
A4_PX = (1240, 1754)
PROMPT_TOKENS, TOKENS = 512, 32
PEER_S = 600


@dataclass(slots=True)
class Figures:
    """One program's, a value for each round. Rates in tokens a second."""

    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    tile_s: list[float] = field(default_factory=list)
    int8_tile_s: list[float] = field(default_factory=list)
    page_s: list[float] = field(default_factory=list)


def main() -> None:
    options = parse_options()
    mmproj_type = options.vision
    text, mmproj = write_pair(options.shape, options.type, mmproj_type, options.folder)
    peer_programs = (find_program("llama-bench"), find_program("llama-mtmd-cli"))
    if None in peer_programs:
        print(f"note: {MISSING}", file=sys.stderr)
    ours, theirs, facts = Figures(), Figures(), {}
    with tempfile.TemporaryDirectory(prefix="ivl-cpu-") as folder:
        tile, page = make_images(Path(folder))
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            facts = run_ours(options, text, mmproj, page if options.page else None, ours)
            if peer_programs[0]:
                run_llama_bench(peer_programs[0], text, options.threads, theirs)
            if peer_programs[1]:
                tool = peer_programs[1]
                theirs.tile_s.append(run_mtmd(tool, text, mmproj, tile, options.threads)[0])
                if options.page:
                    theirs.page_s.append(run_mtmd(tool, text, mmproj, page, options.threads)[1])
    table = report(options, facts, ours, theirs)
    print(table)
    if options.write:
        write_docs(f"{options.shape}-{options.type}", table)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="4b", help="1b, 4b, 38b or 78b")
    parser.add_argument("--type", default="Q4_K_M", help="the decoder's mix")
    parser.add_argument("--vision", default="F16", help="the tower's type")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="also an A4 page; takes minutes")
    parser.add_argument("--write", action="store_true", help=f"write {DOCS.relative_to(ROOT)}")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ivl-bench-models",
        help="where the files of random weights are kept",
    )
    return parser.parse_args()


def make_images(folder: Path) -> tuple[Path, Path]:
    """An image of one tile, and one of an A4 page."""
    with Image.open(SAMPLE) as image:
        picture = image.convert("RGB")
    tile, page = folder / "tile.png", folder / "page.png"
    picture.resize((TILE_PX, TILE_PX)).save(tile)
    picture.resize(A4_PX).save(page)
    return tile, page


def run_ours(
    options: argparse.Namespace, text: Path, mmproj: Path, page: Path | None, figures: Figures
) -> dict[str, Any]:
    program = Path(sys.executable).with_name("ivl")
    command = [str(program), "bench", "--json", "--quiet", "--rounds", "1"]
    command += ["--model", str(text), "--mmproj", str(mmproj), "--threads", str(options.threads)]
    whole = [*command, "--prompt", str(PROMPT_TOKENS), "--tokens", str(TOKENS)]
    whole += ["--image", str(page)] if page else []
    found = json.loads(run(whole))
    in_int8 = json.loads(run([*command, "--prompt", "1", "--tokens", "1", "--vision", "int8"]))
    figures.int8_tile_s += in_int8["tile_s"]
    figures.decode.append(found["decode_tokens_per_s"])
    figures.prefill.append(found["prefill_tokens_per_s"])
    figures.tile_s += found["tile_s"]
    figures.page_s += found["page_s"]
    return found


def run_llama_bench(program: Path, text: Path, threads: int, figures: Figures) -> None:
    command = [str(program), "-m", str(text), "-t", str(threads), "-r", "1", "-o", "json"]
    rows = json.loads(run([*command, "-p", str(PROMPT_TOKENS), "-n", str(TOKENS)]))
    for row in rows:
        (figures.prefill if row["n_prompt"] else figures.decode).append(row["avg_ts"])


def run_mtmd(
    program: Path, text: Path, mmproj: Path, image: Path, threads: int
) -> tuple[float, float]:
    """Seconds to encode all tiles, and from the file to the first token, by the program's log."""
    command = [str(program), "-m", str(text), "--mmproj", str(mmproj), "--image", str(image)]
    command += ["-p", "What is this?", "-n", "1", "-t", str(threads), "--temp", "0"]
    log = run([*command, "-c", "8192", "--perf", "-lv", "4"], with_errors=True)
    encode_ms = sum(int(ms) for ms in re.findall(r"encoding done in (\d+) ms", log))
    began = re.search(r"^(\S+) I main: loading model", log, re.MULTILINE)
    ended = re.search(r"^(\S+) I llama_perf_context_print:\s+load time", log, re.MULTILINE)
    if not (encode_ms and began and ended):
        raise SystemExit(f"error: {program.name} said nothing of its times:\n{log[-2000:]}")
    return encode_ms / 1000, _clock_s(ended[1]) - _clock_s(began[1])


def _clock_s(stamp: str) -> float:
    """Seconds of a stamp minutes.seconds.milliseconds.microseconds."""
    minutes, seconds, milliseconds, _ = (int(part) for part in stamp.split("."))
    return 60 * minutes + seconds + milliseconds / 1000


def run(command: list[str], *, with_errors: bool = False) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=PEER_S,
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return done.stdout + (done.stderr if with_errors else "")


def report(
    options: argparse.Namespace, facts: dict[str, Any], ours: Figures, theirs: Figures
) -> str:
    """The table, with what it was measured on."""
    bandwidth, size = facts["bandwidth_bytes_per_s"], facts["decoder_bytes"]
    share = statistics.median(ours.decode) * size / bandwidth
    limit = f"{bandwidth / size:.1f} (reads at {bandwidth / 1e9:.0f} GB/s); reached {share:.0%}"
    rows = [
        ("write, tokens/s", ours.decode, theirs.decode, False, limit),
        (f"read {PROMPT_TOKENS}, tokens/s", ours.prefill, theirs.prefill, False, ""),
        ("one tile, s", ours.tile_s, theirs.tile_s, True, ""),
        ("one tile in int8, s", ours.int8_tile_s, theirs.tile_s, True, ""),
        ("A4 page to first token, s", ours.page_s, theirs.page_s, True, ""),
    ]
    lines = [
        f"Shape {options.shape}, {options.type}, tower {options.vision}: "
        f"{facts['machine']['processor']}, {options.threads} threads, medians of "
        f"{options.rounds} rounds, commit {commit()}",
        "",
        "| work | llama.cpp | ivl | ratio | limit |",
        "|---|---|---|---|---|",
    ]
    for name, mine, peers, is_time, remark in rows:
        if not mine:
            continue
        lines.append(f"| {name} | {_cells(mine, peers, is_time)} | {remark} |")
    return "\n".join(lines)


def _cells(mine: list[float], peers: list[float], is_time: bool) -> str:
    own = statistics.median(mine)
    if not peers:
        return f"not measured | {own:.3g} | "
    ratios = [p / m if is_time else m / p for m, p in zip(mine, peers, strict=True)]
    return f"{statistics.median(peers):.3g} | {own:.3g} | {statistics.median(ratios):.2f}"


def write_docs(key: str, table: str) -> None:
    """Replaces the table of that key, or adds it at the end."""
    begin, end = f"<!-- bench.cpu {key} -->", "<!-- end -->"
    text = DOCS.read_text("utf-8")
    block = f"{begin}\n{table}\n{end}"
    start = text.find(begin)
    if start < 0:
        text = f"{text.rstrip()}\n\n{block}\n"
    else:
        stop = text.index(end, start) + len(end)
        text = text[:start] + block + text[stop:]
    DOCS.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
