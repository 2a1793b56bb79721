"""Every page of a broken or hostile PDF comes to an end, and leaves the others as they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ivl.errors import IvlError, LockedError, RequestError
from ivl.pages import pdf_process
from ivl.pages.reader import load_image, open_pages
from tests.pages.broken_pdfs import KINDS, TWO


def read(path: Path) -> tuple[str, str, list[IvlError]]:
    """What comes of a file and of its pages, as `Kind` has it, and why."""
    errors: list[IvlError] = []
    try:
        pages = open_pages(path)
    except RequestError as error:
        return "locked" if isinstance(error, LockedError) else "failed", "", [error]
    statuses = []
    for page in pages:
        try:
            statuses.append("ok" if page.load().mode == "RGB" else "of another mode")
        except RequestError as error:
            statuses.append("failed")
            errors.append(error)
    return "ok", " ".join(statuses), errors


posix = pytest.mark.skipif(os.name != "posix", reason="ends a process by a signal")


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_broken_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[name]
    if kind.takes == "memory" and os.name != "posix":
        pytest.skip("what a process takes is not known here")
    if kind.takes:
        monkeypatch.setattr(pdf_process, "MOST_SECONDS", 2.0 if kind.takes == "time" else 60.0)
        monkeypatch.setattr(
            pdf_process, "MOST_BYTES", (4000 if kind.takes == "time" else 300) << 20
        )
    path = tmp_path / "a.pdf"
    path.write_bytes(kind.data)
    opens, pages, errors = read(path)
    assert (opens, pages) == (kind.opens, kind.pages)
    for error in errors:
        assert error.message.startswith(str(path))
        assert error.hint
    assert any(kind.says in error.message for error in errors) or not kind.says
    if kind.takes:
        limit = "2 s" if kind.takes == "time" else "300 MiB"
        assert f"takes more than {limit}" in errors[0].message
    # Whatever it was, the next file is read.
    assert load_image(TWO, frame=1).getpixel((5, 5)) == (0, 0, 255)


def test_a_page_that_takes_too_long_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_process, "MOST_SECONDS", 1.0)
    [page] = open_pages(KINDS["pattern with steps of nothing"].data)
    with pytest.raises(RequestError, match="takes more than 1 s"):
        page.load()
    monkeypatch.setattr(pdf_process, "MOST_SECONDS", 60.0)
    with pytest.raises(RequestError, match="takes more than 1 s"):
        page.load()


def test_the_pages_behind_such_a_page_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_process, "MOST_SECONDS", 1.0)
    data = KINDS["pattern with steps of nothing"].data.replace(
        b"/Kids[3 0 R]/Count 1", b"/Kids[3 0 R 6 0 R]/Count 2"
    )
    more = b"\n6 0 obj\n<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 5 0 R>>\nendobj\n"
    at = data.index(b"xref")
    first, second = open_pages(data[:at] + more + data[at:])
    with pytest.raises(RequestError, match="page 1 of 2 takes more than 1 s"):
        first.load()
    assert second.load().getpixel((1, 1)) == (255, 255, 255)


def test_many_such_pages_are_given_less_time_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_process, "MOST_SECONDS", 1.0)
    data = KINDS["pattern with steps of nothing"].data
    pages = open_pages(
        data.replace(b"/Kids[3 0 R]/Count 1", b"/Kids[3 0 R 3 0 R 3 0 R 3 0 R]/Count 4")
    )
    for page, seconds in zip(pages, ("1", "0.5", "0.25", "0.25"), strict=True):
        with pytest.raises(
            RequestError, match=f"page {page.number} of 4 takes more than {seconds} s"
        ):
            page.load()


def process_of_pdfium() -> subprocess.Popen[bytes]:
    load_image(TWO)
    process = pdf_process.pdf_process._process
    assert process is not None
    return process


@posix
def test_a_crash_fails_the_page_and_nothing_else() -> None:
    process = process_of_pdfium()
    [page] = open_pages(KINDS["pattern with steps of nothing"].data)
    crash = threading.Timer(0.5, os.kill, (process.pid, signal.SIGSEGV))
    crash.start()
    with pytest.raises(RequestError, match="PDFium has crashed on it"):
        page.load()
    crash.join()
    assert load_image(TWO).getpixel((5, 5)) == (255, 0, 0)


@posix
def test_a_process_that_was_ended_while_idle_is_started_again() -> None:
    page = open_pages(TWO)[1]
    process = process_of_pdfium()
    process.kill()
    process.wait()
    assert page.load().getpixel((5, 5)) == (0, 0, 255)


def test_where_no_process_can_be_started_pages_are_drawn_all_the_same() -> None:
    code = (
        "import sys; sys.executable = ''\n"
        "from ivl.pages.reader import open_pages\n"
        f"pages = open_pages({TWO!r})\n"
        "print([page.load().getpixel((5, 5)) for page in pages])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[(255, 0, 0), (0, 0, 255)]\n"
    assert done.stderr == ""


def test_what_prints_when_python_starts_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('Welcome to this machine')")
    code = f"from ivl.pages.reader import load_image; print(load_image({TWO!r}).getpixel((5, 5)))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "Welcome to this machine\n(255, 0, 0)\n"


@posix
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Even where that is killed while a page is drawn that never ends."""
    path = tmp_path / "a.pdf"
    path.write_bytes(KINDS["pattern with steps of nothing"].data)
    code = (
        "from ivl.pages import pdf_process\nfrom ivl.pages.reader import open_pages\n"
        "pdf_process.MOST_SECONDS = 2.0\n"
        f"[page] = open_pages({str(path)!r})\n"
        "print(pdf_process.pdf_process._process.pid, flush=True)\n"
        "page.load()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """A process that has ended may wait for its new parent, which need not look after it here."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
