"""Markdown files: their links lead to files and headings that exist, and files they name are there.

Anchors are made as GitHub makes them: lower case, no punctuation, hyphens for spaces. `make docs`
checks the links of its pages once more.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "training", "bench", "tests", "src", "csrc", "samples")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
NAMED_FILE = re.compile(r"`([\w./*-]+\.(?:py|cpp|hpp|h|csv))`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(?:a|img)[^>]*(?:href|src)=\"([^\"]+)\"")

FOREIGN = {"configuration_internvl_chat.py", "convert_hf_to_gguf.py"}
"""Files of other projects, and what CONTRIBUTING.md forbids or leaves to fill in."""
FOREIGN |= {"utils.py", "helpers.py", "common.py", "src/ivl/cli/NAME.py"}


def markdown_files() -> list[Path]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *below])


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ +(.*?) *$", FENCE.sub("", text), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    # The second of the same name gets a number.
    return {
        slug if not (before := slugs[:place].count(slug)) else f"{slug}-{before}"
        for place, slug in enumerate(slugs)
    }


def broken(path: Path, text: str) -> Iterator[str]:
    """Targets of relative links, of a file with this text, that lead nowhere."""
    prose = CODE.sub("", FENCE.sub("", text))
    for match in LINK.finditer(prose):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        if (
            not file.exists()
            or (name.endswith("/") and not file.is_dir())
            or (anchor and anchor not in anchors(text if file == path else file.read_text("utf-8")))
        ):
            yield target


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert list(broken(path, path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("[a](docs/plan.md) ![b](docs/none.png)", ["docs/none.png"]),
        ("# One, `two`\n# One two\n[a](#one-two) [b](#one-two-1) [c](#one-two-2)", ["#one-two-2"]),
        ("[a](docs/fidelity.md#data) [b](docs/fidelity.md#none)", ["docs/fidelity.md#none"]),
        ("```\n[a](none.md)\n```\n`[b](none.md)` [c](https://example.org/none)", []),
        ("[split\nover lines](none.md)", ["none.md"]),
    ],
)
def test_broken_links_are_found(text: str, targets: list[str]) -> None:
    assert list(broken(ROOT / "README.md", text)) == targets


def test_files_that_are_named_exist() -> None:
    """A name may leave out the folders before it, such as src/ivl."""
    there = [
        f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")
    ]
    missing = [
        f"{path.relative_to(ROOT)} names {name}"
        for path in markdown_files()
        for name in NAMED_FILE.findall(path.read_text("utf-8"))
        if name not in FOREIGN and not fnmatch.filter(there, f"*/{name}")
    ]
    assert not missing, "\n".join(missing)
