"""Names of files as terminals paste them and people type them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ivl.cli.dropped import complete, leading_files, named_file, named_files

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the quoting of POSIX shells")

NAMES = ["a b.png", "c.jpg", "O'Brien (2).png", "plain", "notes.md"]


@pytest.fixture
def home(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with files of many names in a folder `my scans`, and in the present directory."""
    for folder in (isolated_home / "my scans", isolated_home / "here"):
        folder.mkdir()
        for name in NAMES:
            (folder / name).touch()
    monkeypatch.chdir(isolated_home / "here")
    return isolated_home


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("c.jpg", ["c.jpg"]),
        ("a b.png", ["a b.png"]),
        (r"a\ b.png", ["a b.png"]),
        ("'a b.png'", ["a b.png"]),
        ('"a b.png"', ["a b.png"]),
        ("~/my scans/a b.png", ["~/my scans/a b.png"]),
        ("'~/my scans/a b.png'", ["~/my scans/a b.png"]),
        (r"~/my\ scans/a\ b.png", ["~/my scans/a b.png"]),
        ("{home}/my scans/a b.png", ["{home}/my scans/a b.png"]),
        ("file://{home}/my%20scans/a%20b.png", ["file://{home}/my%20scans/a%20b.png"]),
        (r"O\'Brien\ \(2\).png", ["O'Brien (2).png"]),
        ("'O'\\''Brien (2).png'", ["O'Brien (2).png"]),
        ("O'Brien (2).png", ["O'Brien (2).png"]),
        (r"a\ b.png c.jpg", ["a b.png", "c.jpg"]),
        ("'a b.png' 'c.jpg'", ["a b.png", "c.jpg"]),
        ("c.jpg gone.png", ["c.jpg", "gone.png"]),
        ("gone.png", ["gone.png"]),
        ("my gone scan.png", ["my gone scan.png"]),
        (r"C:\Users\ann\scan.png", [r"C:\Users\ann\scan.png"]),
    ],
)
def test_the_names_in_an_argument(typed: str, names: list[str], home: Path) -> None:
    expected = [name.format(home=home) for name in names]
    assert named_files(typed.format(home=home)) == expected


@pytest.mark.parametrize(
    ("line", "names", "question"),
    [
        ("c.jpg", ["c.jpg"], ""),
        ("a b.png", ["a b.png"], ""),
        (r"a\ b.png", ["a b.png"], ""),
        ("{home}/my\\ scans/a\\ b.png", ["{home}/my scans/a b.png"], ""),
        ("'{home}/my scans/a b.png' ~/my\\ scans/c.jpg", None, ""),
        ("file://{home}/my%20scans/c.jpg", ["file://{home}/my%20scans/c.jpg"], ""),
        ("~/gone.png", ["~/gone.png"], ""),
        ("notes.md", ["notes.md"], ""),
        ("'~/my scans/c.jpg' What is it?", ["~/my scans/c.jpg"], "What is it?"),
        ("~/my\\ scans/c.jpg  It's red?", ["~/my scans/c.jpg"], "It's red?"),
        # Questions.
        ("plain", [], "plain"),
        ("Why?", [], "Why?"),
        ("c.jpg is what?", [], "c.jpg is what?"),
        ("What is c.jpg", [], "What is c.jpg"),
        ("/etc/hosts is a file", [], "/etc/hosts is a file"),
        ("/usr is a folder?", [], "/usr is a folder?"),
        ("Is it Tom's or 'not", [], "Is it Tom's or 'not"),
        ("1/2 or 3/4?", [], "1/2 or 3/4?"),
        ("\0", [], "\0"),
        ("x" * 5000, [], "x" * 5000),
    ],
)
def test_the_files_that_a_line_begins_with(
    line: str, names: list[str] | None, question: str, home: Path
) -> None:
    if names is None:
        names = ["{home}/my scans/a b.png", "~/my scans/c.jpg"]
    expected = [name.format(home=home) for name in names]
    assert leading_files(line.format(home=home)) == (expected, question)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("chat.txt", "chat.txt"),
        ("my chat.txt", "my chat.txt"),
        ("'my chat.txt'", "my chat.txt"),
        (r"my\ chat.txt", "my chat.txt"),
        (r"C:\chat.txt", r"C:\chat.txt"),
    ],
)
def test_the_name_of_a_file_to_be(typed: str, name: str) -> None:
    assert named_file(typed) == name


COMMANDS = ["/image", "/clear", "/save", "/help", "/exit"]


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("/i", ["/image "]),
        ("/", [f"{name} " for name in COMMANDS]),
        ("/image c", ["/image c.jpg"]),
        ("/image a", [r"/image a\ b.png"]),
        (r"/image a\ ", [r"/image a\ b.png"]),
        ("/image 'a ", ["/image 'a b.png'"]),
        ("/image c.jpg a", [r"/image c.jpg a\ b.png"]),
        ("/image ~/my", [r"/image ~/my\ scans/"]),
        (r"/image ~/my\ scans/c", [r"/image ~/my\ scans/c.jpg"]),
        ("/save n", ["/save notes.md"]),
        ("~/my", [r"~/my\ scans/"]),
        ("./c", ["./c.jpg"]),
        ("", []),
        ("What", []),
        ("/image zzz", []),
        ("/image ~/gone/x", []),
    ],
)
def test_tab_completes(line: str, lines: list[str], home: Path) -> None:
    found = complete(line, COMMANDS)
    # Below the root there may be anything.
    assert found[: len(lines)] == lines
    assert len(found) == len(lines) or line == "/"


def test_a_completed_name_is_the_files(home: Path) -> None:
    for name in NAMES:
        for start in (f"/image {name[0]}", f"/image '{name[0]}"):
            if "'" in name and start.endswith(f"'{name[0]}"):
                continue  # within single quotation marks there is no way to write one
            assert any(
                named_files(line.removeprefix("/image ")) == [name]
                for line in complete(start, COMMANDS)
            )
