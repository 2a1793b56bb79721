"""Plans against measurement: peak memory, and tokens a second, of random weights at true shapes.

    python -m bench.plan [--only-memory | --only-speed] [--only 1b-Q4_K_M] [--folder DIR] [--write]

Each row runs in a process of its own (`bench.plan_measure`). `--write` puts the tables into
docs/plan.md. Sizes in `HELD_OUT` had no part in fitting a constant of the planner. Close other
programs before you measure speed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.plan_measure import GRID_SIZES
from bench.shapes import commit, machine

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "plan.md"
HELD_OUT = ("4b", "8b")
SIZES, TYPES = ("1b", "2b", "4b", "8b"), ("Q4_K_M", "Q8_0")
WORK = ((2048, 1), (2048, 7), (16384, 1), (16384, 13))
"""Context and tiles. 13 tiles are 3330 tokens, more than a context of 2048 holds: 7 stand there."""
MOST_ERROR, WIDEST = 0.05, 1.6


@dataclass(frozen=True, slots=True)
class Case:
    size: str
    type: str

    @property
    def name(self) -> str:
        return f"{self.size}-{self.type}"


CASES = (*(Case(size, kind) for size in SIZES for kind in TYPES), Case("1b", "BF16"))


class Kept:
    """Measurements, kept in a file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        exists = path is not None and path.exists()
        self.found: dict[str, Any] = json.loads(path.read_text()) if exists and path else {}

    def measure(
        self, case: Case, model: Path, context: int, tiles: int, *more: str
    ) -> dict[str, Any]:
        """What `bench.plan_measure` says, in a process of its own."""
        assert tiles in GRID_SIZES
        key = " ".join((case.name, str(context), str(tiles), *more))
        if key not in self.found:
            command = ["-m", "bench.plan_measure", str(model), "--context", str(context)]
            self.found[key] = run([*command, "--tiles", str(tiles), *more])
            if self.path is not None:
                self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        return self.found[key]


def main() -> None:
    options = parse_options()
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    kept = Kept(options.keep)
    memory: list[str] = []
    speed: list[str] = []
    for case in cases:
        folder = Path(options.folder or tempfile.mkdtemp(prefix="ivl-plan-"))
        try:
            model = write_model(case, folder)
            if not options.only_speed:
                memory += [memory_row(case, model, *work, kept) for work in WORK]
            if not options.only_memory:
                speed += [speed_row(case, model, *work, kept) for work in WORK[:2]]
        finally:
            if options.folder is None:
                shutil.rmtree(folder)
    for key, head, rows in (("memory", MEMORY_HEAD, memory), ("speed", SPEED_HEAD, speed)):
        if rows:
            table = "\n".join([f"{machine()}, commit {commit()}", "", *head, *rows])
            if options.write:
                write_docs(key, table)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Plans against measurement.")
    parser.add_argument("--only", action="append", help="a case, such as 8b-Q8_0; repeatable")
    parser.add_argument("--only-memory", action="store_true")
    parser.add_argument("--only-speed", action="store_true")
    parser.add_argument("--folder", help="where the files are kept; without it they are removed")
    parser.add_argument(
        "--keep", type=Path, help="a file of measurements; what is in it is not measured again"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/plan.md")
    return parser.parse_args()


def write_model(case: Case, folder: Path) -> Path:
    """A GGUF pair, or a directory of safetensors for BF16. What is there already stays."""
    target = folder / case.name
    if case.type == "BF16":
        from bench.random_checkpoint import write_checkpoint
        from bench.tokenizer_files import write_tokenizer
        from ivl.family import find

        size = find(case.size)
        assert size is not None
        if not (target / "config.json").exists():
            target.mkdir(parents=True, exist_ok=True)
            write_checkpoint(size.config, target)
            write_tokenizer(size.decoder.architecture, target)
        return target
    from bench.random_gguf import write_pair

    write_pair(case.size, case.type, "F16", target)
    return target


MEMORY_HEAD = [
    "| shape | type | context | tiles | planned, MiB | measured, MiB | error | |",
    "|---|---|---|---|---|---|---|---|",
]


def memory_row(case: Case, model: Path, context: int, tiles: int, kept: Kept) -> str:
    planned = plan_record(model, context, tiles)["memory"]["total_bytes"]
    measured = kept.measure(case, model, context, tiles)["peak_bytes"]
    error = planned / measured - 1
    verdict = "ok" if abs(error) <= MOST_ERROR else "MISSED"
    row = (
        f"| {case.size} | {case.type} | {context} | {tiles} | {planned / 2**20:.0f} | "
        f"{measured / 2**20:.0f} | {error:+.1%} | {verdict}{held_out(case)} |"
    )
    print(row, flush=True)
    return row


SPEED_HEAD = [
    "| shape | type | tiles | tokens/s, plan | measured | first token, s, plan | measured | |",
    "|---|---|---|---|---|---|---|---|",
]


def speed_row(case: Case, model: Path, context: int, tiles: int, kept: Kept) -> str:
    speed = plan_record(model, context, tiles)["speed"]
    measured = kept.measure(case, model, context, tiles, "--times")
    tokens, first = speed["tokens_per_s"], speed["first_token_s"]
    if tokens["low"] is None:
        raise SystemExit("error: measure this machine first: ivl plan --probe")
    inside = tokens["low"] <= measured["tokens_per_s"] <= tokens["high"]
    narrow = tokens["high"] / tokens["low"] <= WIDEST
    verdict = "ok" if inside and narrow else "MISSED"
    row = (
        f"| {case.size} | {case.type} | {tiles} | {tokens['low']:.3g} to {tokens['high']:.3g} | "
        f"{measured['tokens_per_s']:.3g} | {first['low']:.3g} to {first['high']:.3g} | "
        f"{measured['first_token_s']:.3g} | {verdict}{held_out(case)} |"
    )
    print(row, flush=True)
    return row


def held_out(case: Case) -> str:
    return ", held out" if case.size in HELD_OUT else ""


def plan_record(model: Path, context: int, tiles: int) -> dict[str, Any]:
    command = ["-m", "ivl.cli.main", "plan", str(model), "--json", "--device", "cpu"]
    return run([*command, "--context", str(context), "--max-tiles", str(max(1, tiles - 1))])


def run(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def write_docs(key: str, table: str) -> None:
    """Replaces the table of that key."""
    text = DOCS.read_text("utf-8")
    begin, end = f"<!-- bench.plan {key} -->", "<!-- end -->"
    block = f"{begin}\n{table}\n{end}"
    found = re.search(re.escape(begin) + r".*?" + re.escape(end), text, re.DOTALL)
    if found is None:
        raise SystemExit(f"error: {DOCS} has no place for the table {key!r}")
    DOCS.write_text(text[: found.start()] + block + text[found.end() :], "utf-8")


if __name__ == "__main__":
    main()
