"""A run that is killed, at any moment, loses at most the pages that it was reading.

IVL_KILLS=200 pytest tests/documents/test_killed.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from ivl.documents.journal import RunJournal

KILLS = int(os.environ.get("IVL_KILLS", "12"))
NUM_PAGES = 60

# Torch is imported once; every run is a fork of that, in which nothing has been computed yet.
PROGRAM = """
import os, sys
import ivl.api, ivl.documents.page_reading, ivl.documents.job
print("ready", flush=True)
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        import ivl
        model = ivl.load(sys.argv[1], threads=1)
        jobs = int(line)
        for _ in ivl.read_documents("in", model=model, out="out", max_tokens=3, jobs=jobs):
            pass
        os._exit(0)
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_page_is_there_once_whenever_a_run_is_killed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    expected = _make_pages(tmp_path / "in")
    rng = random.Random(18)
    program = [sys.executable, "-c", PROGRAM, str(tiny_model_dir)]
    with subprocess.Popen(
        program, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as runs:
        assert runs.stdin is not None
        assert runs.stdout is not None
        assert runs.stdout.readline() == "ready\n"

        def start() -> int:
            runs.stdin.write(f"{rng.choice([1, 2, 8])}\n")  # type: ignore[union-attr]
            runs.stdin.flush()  # type: ignore[union-attr]
            return int(runs.stdout.readline())  # type: ignore[union-attr]

        def ended() -> int:
            return int(runs.stdout.readline())  # type: ignore[union-attr]

        began = time.monotonic()
        start()
        assert ended() == 0
        whole_s = time.monotonic() - began
        texts = _check(tmp_path, expected, is_complete=True)
        _clear(tmp_path / "out")
        killed = 0
        while killed < KILLS:
            process = start()
            time.sleep(rng.uniform(0, whole_s))
            with suppress(ProcessLookupError):  # it was done before
                os.kill(process, signal.SIGKILL)
            was_killed = ended() == signal.SIGKILL
            killed += was_killed
            if (tmp_path / "out").exists():
                found = _check(tmp_path, expected, is_complete=not was_killed)
                assert found.items() <= texts.items()
            if not was_killed:
                _clear(tmp_path / "out")
        start()
        assert ended() == 0
        assert _check(tmp_path, expected, is_complete=True) == texts
        runs.stdin.close()


def _make_pages(folder: Path) -> dict[str, int]:
    """Documents of one to five pages, `NUM_PAGES` in all: name -> number of pages."""
    folder.mkdir()
    counts: dict[str, int] = {}
    number = 0
    while number < NUM_PAGES:
        pages = []
        for _ in range(min(1 + len(counts) % 5, NUM_PAGES - number)):
            image = Image.new("RGB", (90, 60), "white")
            ImageDraw.Draw(image).text((9, 9), f"No. {number}", fill="black")
            pages.append(image)
            number += 1
        name = f"d{len(counts):02}"
        pages[0].save(folder / f"{name}.tif", save_all=True, append_images=pages[1:])
        counts[name] = len(pages)
    return counts


def _check(tmp_path: Path, expected: dict[str, int], *, is_complete: bool) -> dict[str, str]:
    """Every file that is there is whole, and the journal can be read; the texts of the files."""
    out = tmp_path / "out"
    texts = {path.stem: path.read_text() for path in out.glob("*.md")}
    for name, text in texts.items():
        assert [f"<!-- page {n} -->" in text for n in range(1, expected[name] + 1)] == (
            [True] * expected[name]
        )
        assert text.endswith("\n\n")
    if (out / ".ivl-journal.jsonl").exists() and (out / ".ivl-journal.jsonl").stat().st_size:
        with RunJournal(out / ".ivl-journal.jsonl") as journal:
            if journal.runs and is_complete:
                keys = [key for d in journal.runs[-1]["documents"] for key in d["pages"]]  # type: ignore
                assert Counter(map(str, keys)).most_common(1)[0][1] == 1
                assert all(journal.find(str(key)) is not None for key in keys)
                assert len(keys) == NUM_PAGES
    if is_complete:
        assert texts.keys() == expected.keys()
        report = json.loads((out / "report.json").read_text())
        assert (report["pages"], report["left"]) == (NUM_PAGES, 0)
        assert sum(report["statuses"].values()) == NUM_PAGES
    return texts


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
