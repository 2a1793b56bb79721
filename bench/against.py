"""A bench in this checkout and in another one, in turn: the table of the medians, and their ratios.

    git worktree add ../before COMMIT && cd ../before && make lint && cd -
    python -m bench.against ../before --rounds 3 -- serve --decodes 1 16 --tokens 64

What stands behind `--` is a bench of this folder with its options. It runs in each checkout with
the environment of that checkout (`.venv`), so both must have been installed. Every number of its
tables is a row here.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

from bench.shapes import ROOT, machine

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
Rows = dict[tuple[str, str], list[float]]
"""(row, column) of a table -> the values of all rounds."""


def main() -> None:
    options, command = parse_options()
    checkouts = {"before": options.before.resolve(), "after": ROOT}
    found: dict[str, Rows] = {name: {} for name in checkouts}
    for number in range(options.rounds):
        for name, folder in checkouts.items():
            print(f"round {number + 1} of {options.rounds}, {name}", file=sys.stderr, flush=True)
            for place, value in read_tables(run(folder, command)).items():
                found[name].setdefault(place, []).append(value)
    print(f"$ python -m bench.against {' '.join(sys.argv[1:])}")
    print(f"{machine()}, medians of {options.rounds} rounds")
    print("\n".join(f"{name}: {commit_of(folder)}" for name, folder in checkouts.items()))
    print("\n| what | | before | after | after / before |\n|---|---|---|---|---|")
    for (row, column), values in found["before"].items():
        if (row, column) in found["after"]:
            before = statistics.median(values)
            after = statistics.median(found["after"][row, column])
            ratio = f"{after / before:.2f}" if before else ""
            print(f"| {row} | {column} | {before:g} | {after:g} | {ratio} |")


def parse_options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    given = sys.argv[1:]
    if "--" not in given:
        parser.error("a bench and its options stand behind --")
    split = given.index("--")
    return parser.parse_args(given[:split]), given[split + 1 :]


def run(folder: Path, command: list[str]) -> str:
    """What the bench prints in that checkout."""
    python = folder / ".venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", f"bench.{command[0]}", *command[1:]],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: the bench failed in {folder}:\n{done.stderr[-2000:]}")
    return done.stdout


def read_tables(text: str) -> dict[tuple[str, str], float]:
    """The first number of every cell but a row's first, by the row's name and the column's.

    Cells stand between bars, or are two spaces apart; what has no number names the columns of the
    rows below it.
    """
    found: dict[tuple[str, str], float] = {}
    names: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        parts = line[1:-1].split("|") if line.startswith("|") else re.split(r"\s{2,}", line)
        cells = [part.strip() for part in parts]
        if len(cells) < 2 or not cells[0] or set("".join(cells)) <= set("-: "):
            continue
        numbers = [NUMBER.match(cell) for cell in cells[1:]]
        if not any(numbers):
            names = cells[1:] if len(cells) > 2 else []
            continue
        for place, number in enumerate(numbers):
            if number:
                column = names[place] if len(names) == len(numbers) else ""
                found[cells[0], column] = float(number[0])
    return found


def commit_of(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
