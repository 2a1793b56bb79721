"""Writes what `ivl plan` prints into the pages about cards.

    python -m bench.cards [--write]

Without --write it only says which pages are out of date. A page holds blocks that begin with
`$ ivl plan ...`; what follows in the block is what the command prints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

from bench.shapes import ROOT
from ivl.cli.main import run

PAGES = ROOT / "docs" / "cards"
BLOCK = re.compile(r"```\n\$ (ivl plan [^\n]*)\n.*?```", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="bring the pages up to date")
    options = parser.parse_args()
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = renewed(text)
        if fresh == text:
            continue
        print(page.relative_to(ROOT), "written" if options.write else "is out of date")
        if options.write:
            page.write_text(fresh, encoding="utf-8")


def renewed(text: str) -> str:
    """The page with what its commands print today."""
    return BLOCK.sub(lambda block: f"```\n$ {block[1]}\n{printed(block[1])}```", text)


def printed(command: str) -> str:
    """What a command line of ivl prints on stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run(shlex.split(command)[1:])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def pages() -> list[Path]:
    return sorted(PAGES.glob("*.md"))


if __name__ == "__main__":
    main()
