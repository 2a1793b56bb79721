"""What runs in the process that has PDFium: requests in, pages out, one at a time.

A request is a JSON object and, where it brings a file along, the bytes of that file; an answer is a
JSON object, and the pixels of a page where it was drawn. Both have their two lengths in front.

The last document stays open for its next page, so that a damaged file is not repaired for every
page. A thread watches how long a request takes and how much memory, and ends the process where that
is too much, with a status of its own: nothing else stops PDFium.
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import signal
import struct
import sys
import threading
import time
from dataclasses import asdict
from typing import BinaryIO, Final, cast

from ivl.errors import CapacityError, IvlError, LockedError
from ivl.json_values import JsonObject
from ivl.pages.pdfium import NamedDocument, OpenDocument
from ivl.pages.sources import PixelLimit

TOO_LONG: Final = 82
"""The status with which the process ends itself where a request takes longer than it may."""
TOO_MUCH: Final = 83
"""The status where one takes more memory than it may."""

LENGTHS: Final = struct.Struct(">IQ")
"""Of the JSON and of the bytes behind it."""

# A length begins with a zero byte or nearly so, which no text does.
_MOST_JSON_BYTES: Final = 100_000_000

_WATCH_EVERY_S: Final = 0.02

# PDFium frees most with each page. What stays are the objects that it has parsed: of 2,000 pages of
# text with a picture each, 15 MB (measured with a file of that size).
MOST_PAGES_OPEN: Final = 500


def main() -> None:
    """Answers requests from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts means the one that asks
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    watch, drawer = _Watch(), PdfDrawer()
    while (received := receive(requests)) is not None:
        request, data = received
        with watch.over(cast(float, request["seconds"]), cast(int, request["most_bytes"])):
            answer, pixels = drawer.answer(request, data)
        send(answers, answer, pixels)


def send(file: BinaryIO, message: JsonObject, data: bytes | memoryview = b"") -> None:
    """Writes a message; OSError where nobody reads it."""
    text = json.dumps(message).encode()
    file.write(LENGTHS.pack(len(text), len(data)) + text)
    file.write(data)
    file.flush()


def receive(file: BinaryIO) -> tuple[JsonObject, bytes] | None:
    """The next message, or None where no other comes. OSError for what is none: anything that runs
    when Python starts may print."""
    lengths = file.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    num_text, num_data = LENGTHS.unpack(lengths)
    if num_text > _MOST_JSON_BYTES:
        raise OSError("This is not the length of a message.")
    text, data = file.read(num_text), file.read(num_data)
    if len(text) < num_text or len(data) < num_data:
        return None
    return json.loads(text), data


class PdfDrawer:
    """Answers requests, and keeps the document of the last one open.

    A request names its document by a `key`, and says by `version` what state of the file is meant.
    What is kept is opened again if either differs. Where the file has no `path`, an answer
    `{"wants": "file"}` asks for the request again with its bytes.
    """

    def __init__(self) -> None:
        self._document: OpenDocument | None = None
        self._file: BinaryIO | None = None
        self._kept: tuple[object, object] | None = None
        self._num_drawn = 0
        # Closed at the end, and before the library, which would complain: it sees to its own end
        # from when it is imported.
        importlib.import_module("pypdfium2")
        atexit.register(self.close)

    def answer(self, request: JsonObject, data: bytes) -> tuple[JsonObject, bytes | memoryview]:
        """The answer, and the pixels of a page that was drawn."""
        try:
            if request["act"] == "close":
                self.close(cast(str, request["key"]))
                return {}, b""
            document = self._opened(request, data)
            if document is None:
                return {"wants": "file"}, b""
            limit = PixelLimit(
                cast(int, request["max_pixels"]), cast("str | None", request["option"])
            )
            named = NamedDocument(document, cast(str, request["label"]), limit)
            return self._act(document, named, request)
        except IvlError as error:
            locked, capacity = isinstance(error, LockedError), isinstance(error, CapacityError)
            kind = "locked" if locked else "capacity" if capacity else "request"
            return {"error": kind, "message": error.message, "hint": error.hint}, b""

    def close(self, key: str | None = None) -> None:
        """Closes the document that is open, if it is that of `key` (None: whatever it is)."""
        if self._kept is not None and key in (None, self._kept[0]):
            self._close_document()
            if self._file is not None:
                self._file.close()
            self._file = self._kept = None

    def _close_document(self) -> None:
        if self._document is not None:
            self._document.close()
            self._document = None

    def _act(
        self, document: OpenDocument, named: NamedDocument, request: JsonObject
    ) -> tuple[JsonObject, bytes | memoryview]:
        page = cast(int, request["page"])
        match request["act"]:
            case "open":
                return {
                    "num_pages": document.num_pages,
                    "num_attachments": document.num_attachments,
                    "password": document.password.hex(),
                }, b""
            case "labels":
                return {"labels": cast("list[object]", named.labels())}, b""  # type: ignore[dict-item]
            case "size":
                return {"size": list(named.size_px(page))}, b""
            case "text":
                layer = named.text_layer(page)
                return {"layer": None if layer is None else asdict(layer)}, b""
            case _:
                self._num_drawn += 1
                size, pixels = named.draw(page)
                return {"size": list(size)}, pixels

    def _opened(self, request: JsonObject, data: bytes) -> OpenDocument | None:
        """The document of the request; None where its bytes are needed. LockedError,
        RequestError as of `OpenDocument`."""
        wanted = (request["key"], request["version"])
        if self._kept != wanted:
            self.close()
        elif self._num_drawn >= MOST_PAGES_OPEN:
            self._close_document()
        if self._file is None:
            self._file = _file(request["path"], data)
            if self._file is None:
                return None
            self._kept = wanted
        if self._document is None:
            passwords = [bytes.fromhex(one) for one in cast("list[str]", request["passwords"])]
            try:
                self._document = OpenDocument(
                    self._file,
                    cast(str, request["label"]),
                    passwords,
                    can_unlock=cast(bool, request["can_unlock"]),
                )
            except IvlError:
                self.close()
                raise
            self._num_drawn = 0
        return self._document


def _file(path: object, data: bytes) -> BinaryIO | None:
    """The file that a request means; None where it brings none along and there is none to open."""
    if not isinstance(path, str):
        return io.BytesIO(data) if data else None
    try:
        return open(path, "rb")
    except OSError:
        return None


class _Watch:
    """Ends the process where what it watches over takes too long, or too much memory."""

    def __init__(self) -> None:
        self._began = threading.Event()
        self._until, self._most_bytes = 0.0, 0
        threading.Thread(target=self._run, daemon=True).start()

    def over(self, seconds: float, most_bytes: int) -> _Watch:
        """For a `with` block that may take so long, and the process so many bytes."""
        self._until, self._most_bytes = time.monotonic() + seconds, most_bytes
        return self

    def __enter__(self) -> None:
        self._began.set()

    def __exit__(self, *_: object) -> None:
        self._began.clear()

    def _run(self) -> None:
        while True:
            self._began.wait()
            time.sleep(_WATCH_EVERY_S)
            if not self._began.is_set():
                continue
            if time.monotonic() > self._until:
                os._exit(TOO_LONG)
            if _resident_bytes() > self._most_bytes:
                os._exit(TOO_MUCH)


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell it in a way that we know."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
