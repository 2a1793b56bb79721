"""What a run has done so far: a file that is only ever added to, a line a page.

    with RunJournal(path) as journal:
        journal.find(key)
        journal.append(key, {"path": "a.pdf", "page": 1, "status": "ok", "text": "..."})

A line is on the disk before anybody hears of it, so that a run that is killed loses only the pages
that it was reading. Keys have in them all that a page's text depends on: the content of its file,
its number, the model and the settings. What was read otherwise is never found.

The lines are JSON: {"journal": 1} first, {"run": {...}} where a run begins, {"key": "...", "page":
{...}} for a page, of whose key the last line counts, {"file": "...", "of": "...", "content": "..."}
where a file was going to be written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

from ivl.errors import RequestError
from ivl.json_values import JsonObject

VERSION: Final = 1


def journal_key(content_hash: str, page: int, settings: JsonObject) -> str:
    """Of page `page`, from 1, of a file with this content, read by a model and with settings that
    have this form."""
    text = json.dumps([content_hash, page, settings], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class RunJournal:
    """One run at a time has it; it is made when it is not there.

    RequestError for a file that is no journal, and while another run has it. Of the pages only
    their places in the file are kept in memory.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.runs: list[JsonObject] = []
        """What was said where runs began, the last one last."""
        self.files: dict[str, str] = {}
        """The files that were written, and of what each was made last."""
        self._contents: dict[str, list[str]] = {}
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._file: io.FileIO = _open(path, read_only=read_only)
        try:
            if not read_only:
                _lock(self._file, path)
            self._read()
            if not read_only and self._end == 0:
                self._write({"journal": VERSION})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def find(self, key: str) -> JsonObject | None:
        """The page of this key, as it was appended last."""
        place = self._places.get(key)
        if place is None:
            return None
        line = os.pread(self._file.fileno(), place[1], place[0])
        return cast(JsonObject, json.loads(line)["page"])

    def append(self, key: str, page: JsonObject) -> None:
        """The page is on the disk when this returns."""
        self._places[key] = self._write({"key": key, "page": page})

    def begin(self, run: JsonObject) -> None:
        """A run begins, of which this is to be known."""
        self.runs.append(run)
        self._write({"run": run})

    def wrote(self, file: str, of: str, content: str) -> None:
        """A file is going to have this content, given by its hash, made of what `of` stands for."""
        self._note_file(file, of, content)
        self._write({"file": file, "of": of, "content": content})

    def last_content(self, file: str) -> str | None:
        """The hash of what was written there last; None where nothing was."""
        return self._contents.get(file, [None])[-1]

    def has_written(self, file: str, content: str) -> bool:
        """Whether that was ever written there. One who was killed while he wrote has left what was
        there before."""
        return content in self._contents.get(file, ())

    def _note_file(self, file: str, of: str, content: str) -> None:
        self.files[file] = of
        self._contents.setdefault(file, []).append(content)

    def _write(self, line: JsonObject) -> tuple[int, int]:
        start = self._end
        # Names of files need not be text; what is not is escaped.
        data = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.seek(start)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # what follows must not stand behind half a line
                self._file.truncate(start)
            raise RequestError(
                f"{self.path} cannot be written: {error.strerror}.",
                "Make room; the same command then goes on.",
            ) from None
        self._end = start + len(data)
        return start, len(data)

    def _read(self) -> None:
        """Finds the places of all pages. A last line that was not finished is cut off; another that
        cannot be read, as of a disk that has failed, is passed over."""
        start, num_lines = 0, 0
        with io.BufferedReader(io.FileIO(self._file.fileno(), closefd=False)) as file:
            file.seek(0)
            for line in file:
                entry = _entry(line)
                if num_lines == 0 and line.endswith(b"\n") and not _is_head(entry):
                    raise _no_journal(self.path)
                if not line.endswith(b"\n"):
                    break
                if entry is not None:
                    self._note(entry, start, len(line))
                start, num_lines = start + len(line), num_lines + 1
        if self._file.writable():
            self._file.truncate(start)
        self._end = start

    def _note(self, entry: JsonObject, start: int, length: int) -> None:
        if "page" in entry:
            self._places[str(entry["key"])] = (start, length)
        elif "run" in entry:
            self.runs.append(cast(JsonObject, entry["run"]))
        elif "file" in entry:
            self._note_file(str(entry["file"]), str(entry["of"]), str(entry.get("content")))


def _open(path: Path, *, read_only: bool) -> io.FileIO:
    try:
        if read_only:
            return path.open("rb", buffering=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path.open("r+b", buffering=0)
    except FileNotFoundError as error:
        if not read_only:
            raise RequestError(
                f"Nothing can be written to {path.parent}: {error.strerror}.",
                "Choose another place.",
            ) from None
        raise RequestError(
            f"There is no journal {path}.", "Name the folder or the file that a run wrote to."
        ) from None
    except OSError as error:
        raise RequestError(
            f"{path} cannot be opened: {error.strerror}.", "Choose another place to write to."
        ) from None


def _lock(file: io.FileIO, path: Path) -> None:
    """Until the file is closed, or the process has ended in whatever way."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RequestError(
            f"Another run is writing to {path.parent}.", "Wait for it, or choose another place."
        ) from None


def _is_head(entry: JsonObject | None) -> bool:
    return entry is not None and entry.get("journal") == VERSION


def _entry(line: bytes) -> JsonObject | None:
    """None for a line that is not JSON."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _no_journal(path: Path) -> RequestError:
    return RequestError(
        f"{path} is not a journal of this version of ivl.", "Move it away, or write elsewhere."
    )
