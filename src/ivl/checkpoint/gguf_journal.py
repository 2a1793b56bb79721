"""What of an unfinished GGUF file is there already, so that an interrupted writer can go on.

The journal stands beside the unfinished file, one JSON object a line:

    {"header": SHA-256 of the file's header, "fingerprint": what the tensors are made from}
    {"tensors": names that are whole, "last_crc32": of the last one's bytes}

The header has all metadata, types and places of tensors, so that the two of the first line say
whether the same file would be written from the same input. A line is added only when the tensors
that it names are on the disk; a last line that was cut off counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ivl.errors import CheckpointError

_READ_BYTES = 1 << 24

Extents = Mapping[str, tuple[int, int]]
"""Tensor name -> first byte and number of bytes in the file."""


class Journal:
    """The journal of one unfinished file; only one program at a time may have it open."""

    def __init__(self, path: Path, header: bytes, fingerprint: str) -> None:
        """Takes over what an earlier run left. CheckpointError when another program is at it.

        Raises OSError when the file cannot be made.
        """
        self.path = path
        digest = hashlib.sha256(header).hexdigest()
        self._first = {"header": digest, "fingerprint": fingerprint}
        self._stream: IO[bytes] = path.open("a+b")
        _lock(self._stream, path)

    def whole_tensors(self, unfinished: Path, extents: Extents) -> list[str]:
        """The tensors that need not be written again; none when anything does not fit."""
        self._stream.seek(0)
        lines = _lines(self._stream.read())
        if not lines or lines[0] != self._first or not unfinished.exists():
            return []
        names = [name for line in lines[1:] for name in line["tensors"]]
        if not names or any(name not in extents for name in names):
            return []
        with unfinished.open("rb") as stream:
            crc = crc32_of(stream, *extents[names[-1]])
        end = max(sum(extents[name]) for name in names)
        whole = unfinished.stat().st_size >= end and crc == lines[-1]["last_crc32"]
        return names if whole else []

    def begin(self, names: Sequence[str], last_crc32: int) -> None:
        """Start anew, with these tensors whole."""
        self._stream.truncate(0)
        self._put(self._first)
        if names:
            self.add(names, last_crc32)

    def add(self, names: Sequence[str], last_crc32: int) -> None:
        """These tensors are on the disk."""
        self._put({"tensors": list(names), "last_crc32": last_crc32})

    def close(self) -> None:
        self._stream.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def _put(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def crc32_of(stream: IO[bytes], start: int, num_bytes: int) -> int:
    """The checksum of a part of a file; of what there is of it when the file is too short."""
    stream.seek(start)
    crc = 0
    while num_bytes > 0 and (piece := stream.read(min(num_bytes, _READ_BYTES))):
        crc = zlib.crc32(piece, crc)
        num_bytes -= len(piece)
    return crc


def _lines(content: bytes) -> list[dict[str, Any]]:
    """The whole lines; those behind one that is damaged do not count."""
    found: list[dict[str, Any]] = []
    for line in content.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            break
        expected = {"tensors", "last_crc32"} if found else {"header", "fingerprint"}
        if not isinstance(value, dict) or set(value) != expected:
            break
        found.append(value)
    return found


def _lock(stream: IO[bytes], path: Path) -> None:
    """Held until the stream is closed. Systems without `fcntl` (Windows) do without."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise CheckpointError(
            f"Another program is writing {path.name.removesuffix('.journal')} at this moment.",
            "Wait until it is done, or choose another output.",
        ) from None
