"""The process that has PDFium, from outside: started when a PDF is first opened, asked, and started
anew when it has died of a file that was damaged or made to do harm.

Where no process can be started, PDFium is asked in this one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from typing import BinaryIO, Final, cast

from ivl.errors import CapacityError, IvlError, LockedError, RequestError
from ivl.json_values import JsonObject
from ivl.pages.pdf_worker import TOO_LONG, TOO_MUCH, PdfDrawer, receive, send

MOST_SECONDS: Final = 60.0
"""A page may take so long. The slowest of the 350 pages in the tests of pypdf and pikepdf takes
0.2 s, and one of a million rectangles 2 s, on a core of 2 GHz."""

# With each page that PDFium has not survived, the file's other pages get half the time, down to a
# quarter: a hundred such pages are no accident.
_MOST_HALVINGS: Final = 2

MOST_BYTES: Final = 900 << 20
"""The process may take so much memory for a page, and the file's bytes beside. A picture of 30,000
by 30,000 pixels, which PDFium decodes line by line, takes 0.2 GB."""

_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ivl.pages.pdf_worker import main; main()"
)


class PdfiumDied(RequestError):
    """PDFium did not come to an end within its limits, or crashed."""


class PdfProcess:
    """Has at most one process, and one request in it at a time; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._has_answered = False
        self._here: PdfDrawer | None = None
        self._forgotten: list[str] = []

    def ask(self, request: JsonObject, data: bytes = b"") -> tuple[JsonObject, bytes | memoryview]:
        """The answer, and the pixels that come with it. RequestError, CapacityError and LockedError
        as of what was asked for; PdfiumDied, about the request's `title`, where PDFium does not
        end, takes too much memory, or crashes."""
        with self._lock:
            self._close_forgotten()
            answer, pixels = self._tell(request, data, cast(str, request["title"]))
        if "error" in answer:
            kinds: dict[object, type[IvlError]] = {"locked": LockedError, "capacity": CapacityError}
            raise kinds.get(answer["error"], RequestError)(
                cast(str, answer["message"]), cast(str, answer["hint"])
            )
        return answer, pixels

    def forget(self, key: str) -> None:
        """The document of this key will not be asked for again. Never waits: it is closed now, or
        before something else is asked for."""
        self._forgotten.append(key)
        if self._lock.acquire(blocking=False):
            try:
                self._close_forgotten()
            finally:
                self._lock.release()

    def stop(self) -> None:
        """Ends the process, and with it everything that is open."""
        with self._lock:
            self._end()
            if self._here is not None:
                self._here.close()

    def _close_forgotten(self) -> None:
        while self._forgotten:
            key = self._forgotten.pop()
            try:
                if self._process is not None or self._here is not None:
                    self._tell({"act": "close", "key": key}, b"", "")
            except IvlError:
                pass  # the process has died, and the document with it

    def _tell(
        self, request: JsonObject, data: bytes, title: str
    ) -> tuple[JsonObject, bytes | memoryview]:
        seconds = MOST_SECONDS / 2 ** min(cast(int, request.get("num_fatal", 0)), _MOST_HALVINGS)
        request = {
            **request,
            "seconds": seconds,
            "most_bytes": MOST_BYTES + len(data),
        }
        process = self._running()
        if process is None:
            return self._ask_here(request, data)
        received = None
        try:
            send(cast(BinaryIO, process.stdin), request, data)
            received = receive(cast(BinaryIO, process.stdout))
        except OSError:
            pass  # it has ended: why is seen below
        except BaseException:  # half a message may be on its way
            process.kill()
            self._end()
            raise
        if received is not None:
            self._has_answered = True
            return received
        status = self._end()
        if not self._has_answered and status not in (TOO_LONG, TOO_MUCH) and status >= 0:
            # It did not come so far as to answer anything sensible: no fault of the file's.
            return self._ask_here(request, data)
        raise _died(status, title, seconds)

    def _ask_here(self, request: JsonObject, data: bytes) -> tuple[JsonObject, bytes | memoryview]:
        self._here = self._here or PdfDrawer()
        return self._here.answer(request, data)

    def _running(self) -> subprocess.Popen[bytes] | None:
        """The process; None where there can be none. A fork of this one starts its own, and what
        somebody else has ended is started anew."""
        if self._process is not None and self._owner != os.getpid():
            self._process = None
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._here is None and self._process is None:
            self._process, self._owner = _start(), os.getpid()
        return self._process

    def _end(self) -> int:
        """Waits for the end of the process, whose input ends, and gives its status."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return 0
        for pipe in (process.stdin, process.stdout):
            try:
                cast(BinaryIO, pipe).close()
            except OSError:
                pass
        try:
            return process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _start() -> subprocess.Popen[bytes] | None:
    # A program that was frozen into one file would start itself.
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps([*map(str, sys.path)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError:
        return None


def _died(status: int, title: str, seconds: float) -> PdfiumDied:
    hint = "Print it to a new PDF, or leave it out."
    if status == TOO_LONG:
        return PdfiumDied(f"{title} takes more than {seconds:g} s to draw.", hint)
    if status == TOO_MUCH:
        megabytes = MOST_BYTES >> 20
        return PdfiumDied(f"{title} takes more than {megabytes} MiB of memory to draw.", hint)
    return PdfiumDied(f"{title} is damaged: PDFium has crashed on it.", hint)


pdf_process: Final = PdfProcess()
"""The one of this process, which ends with it."""
atexit.register(pdf_process.stop)
