"""docs/commands.md holds the help of every command, word for word.

After a change: `UPDATE_DOCS=1 pytest tests/cli/test_docs.py` writes it anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ivl.cli.main import COMMANDS, run

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
WANTS_UPDATE = bool(os.environ.get("UPDATE_DOCS"))
HEAD = """\
# Commands

The help of every command. A test compares this page with it; to write it anew, run
`UPDATE_DOCS=1 pytest tests/cli/test_docs.py`.

Answers go to stdout, progress and notes to stderr. The exit code is 0 on success, 2 for something
you can fix (the error says what, the hint says how), 130 after Ctrl-C, and 1 when the program that
reads the output has ended (`ivl read page.png | head -1`), or for a bug in ivl, with a traceback.
"""


def test_the_page_is_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sections = [HEAD]
    for command in ([], *([name] for name in COMMANDS)):
        assert run([*command, "--help"]) == 0
        title = " ".join(["ivl", *command])
        sections.append(f"## {title}\n\n```text\n{capsys.readouterr().out.strip()}\n```\n")
    page = "\n".join(sections)
    if WANTS_UPDATE:
        PAGE.write_text(page, encoding="utf-8")
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    assert written == page, "run: UPDATE_DOCS=1 pytest tests/cli/test_docs.py"
