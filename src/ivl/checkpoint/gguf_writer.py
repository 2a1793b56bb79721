"""Writing a GGUF file of version 3: the header first, then tensors in any order, by rows.

The file grows under a temporary name beside its own and takes that only when all of it is there,
so what stands under the final name is always whole. No tensor is kept: memory for a few pieces of
rows is enough, and those are quantized at once, each on a thread of its own.

With a fingerprint of what the tensors are made from, an interrupted file stays and is gone on with.
A journal stands beside it then, one JSON object a line:

    {"header": SHA-256 of the file's header, "fingerprint": what the tensors are made from}
    {"tensors": names that are whole, "last_crc32": of the last one's bytes}

The header has all metadata, types and places of tensors, so that the two of the first line say
whether the same file would be written from the same input. A line is added only when the tensors
that it names are on the disk; a last line that was cut off counts as missing.

Source: docs/gguf.md in https://github.com/ggml-org/ggml. The layout is in `ivl.checkpoint.gguf`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ivl.checkpoint.gguf import (
    ARRAY_TYPE,
    DEFAULT_ALIGNMENT_BYTES,
    MAGIC,
    NUMBER_TYPES,
    STRING_TYPE,
    GGUFTensorSpec,
)
from ivl.errors import CheckpointError, IvlError
from ivl.quant.block_format import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Encoded:
    """A metadata value as another file has it: its type and its bytes (`GGUFFile.encoded`)."""

    content: bytes


Written = bool | int | float | str | Sequence[str] | np.generic | npt.NDArray[Any] | Encoded
"""Whole numbers become u32 (i32 below zero, u64 from 2**32 on), others f32; NumPy's numbers and
arrays keep their type."""

SAFE_BYTES = 1 << 26
"""So much may have to be written again after a power cut."""

_TYPE_IDS = {name: number for number, name in NUMBER_TYPES.items()}


class GGUFWriter:
    """A file in the making; use it in a `with` statement.

        with GGUFWriter(path, metadata, tensors) as writer:
            for ...:
                writer.write(name, raw)

    Leaving the block in order gives the file its name; leaving it by an exception deletes what
    was written and keeps what stood under the name before.

    With a `fingerprint`, any text that changes when the input does, the exception leaves an
    unfinished file that has a whole tensor, with a journal, and the next writer of
    the same file from the same input begins with `done`, the tensors that are there already.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Written],
        tensors: Sequence[GGUFTensorSpec],
        *,
        fingerprint: str | None = None,
    ) -> None:
        """Raises UnsupportedError for rows that a format cannot hold, CheckpointError when the
        file cannot be made, ValueError for names that occur twice."""
        self.path = path
        own = os.getpid() if fingerprint is None else "unfinished"
        self.partial = path.with_name(f".{path.name}.{own}.partial")
        self._tensors = {tensor.name: tensor for tensor in tensors}
        if len(self._tensors) != len(tensors):
            raise ValueError("two tensors share a name")
        self.header, self._offsets = encode_header(metadata, tensors)
        self._rows_left = {tensor.name: tensor.rows for tensor in tensors}
        self.done: frozenset[str] = frozenset()
        self._journal: Journal | None = None
        self._unsafe: list[str] = []
        self._unsafe_bytes = 0
        try:
            if fingerprint is not None:
                path_of_journal = self.partial.with_name(f"{self.partial.name}.journal")
                self._journal = Journal(path_of_journal, self.header, fingerprint)
            self._stream = self._open()
        except OSError as error:
            raise self._failed(error) from None
        self._put(0, self.header)

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        ends = (sum(extent) for extent in self._extents().values())
        return _padded(max(ends, default=len(self.header)))

    @property
    def written_bytes(self) -> int:
        """Of it, those of finished tensors."""
        tensors = self._tensors.values()
        return sum(t.num_bytes for t in tensors if not self._rows_left[t.name])

    def write(self, name: str, raw: Bytes, first_row: int = 0) -> None:
        """Write rows of a tensor, uint8 (rows, row_bytes), from `first_row` on; each row once.

        CheckpointError when the disk is full or fails, ValueError for rows of another shape.
        """
        tensor = self._tensors[name]
        fits = raw.ndim == 2 and raw.shape[1] == tensor.row_bytes and raw.dtype == np.uint8
        if not fits or not 0 <= first_row <= tensor.rows - raw.shape[0]:
            raise ValueError(
                f"{name} takes uint8 ({tensor.rows}, {tensor.row_bytes}), "
                f"not {raw.dtype} {raw.shape} from row {first_row}"
            )
        self._rows_left[name] -= raw.shape[0]
        offset = self._offsets[name] + first_row * tensor.row_bytes
        self._put(offset, np.ascontiguousarray(raw).data)
        self._unsafe_bytes += raw.size
        if not self._rows_left[name]:
            self._unsafe.append(name)
            if self._unsafe_bytes >= SAFE_BYTES:
                self._make_safe()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            elif self._journal is not None and not isinstance(error, CheckpointError):
                self._make_safe()
        finally:
            self._stream.close()
            if self._journal is None:
                self.partial.unlink(missing_ok=True)
            elif self.written_bytes:
                self._journal.close()
            else:  # nothing to go on with
                self.partial.unlink(missing_ok=True)
                self._journal.remove()

    def _open(self) -> IO[bytes]:
        """The unfinished file, with what an earlier run has left of it."""
        if self._journal is None:
            return self.partial.open("w+b")
        extents = self._extents()
        names = self._journal.whole_tensors(self.partial, extents)
        stream = self.partial.open("r+b" if names else "w+b")
        self._journal.begin(names, crc32_of(stream, *extents[names[-1]]) if names else 0)
        self.done = frozenset(names)
        self._rows_left |= dict.fromkeys(names, 0)
        return stream

    def _extents(self) -> dict[str, tuple[int, int]]:
        tensors = self._tensors.values()
        return {t.name: (self._offsets[t.name], t.num_bytes) for t in tensors}

    def _make_safe(self) -> None:
        """Enter the finished tensors into the journal, when they are on the disk."""
        if self._journal is None or not self._unsafe:
            return
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            last = self._extents()[self._unsafe[-1]]
            self._journal.add(self._unsafe, crc32_of(self._stream, *last))
        except OSError as error:
            raise self._failed(error) from None
        self._unsafe, self._unsafe_bytes = [], 0

    def _finish(self) -> None:
        unequal = [name for name, left in self._rows_left.items() if left]
        if unequal:
            raise ValueError(f"not every row was written once: {', '.join(unequal[:3])}")
        try:
            # The last tensor is padded too, as other writers do.
            end = self._stream.seek(0, os.SEEK_END)
            self._stream.truncate(_padded(end))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            os.replace(self.partial, self.path)
            if self._journal is not None:
                self._journal.remove()
        except OSError as error:
            raise self._failed(error) from None

    def _put(self, offset: int, content: bytes | memoryview) -> None:
        try:
            self._stream.seek(offset)
            self._stream.write(content)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path} cannot be written: {error.strerror}.",
            "Check the free space and the permissions of the directory.",
        )


def encode_header(
    metadata: Mapping[str, Written], tensors: Sequence[GGUFTensorSpec]
) -> tuple[bytes, dict[str, int]]:
    """The header, padded, and where each tensor begins in the file."""
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    relative, position = {}, 0
    for tensor in tensors:
        relative[tensor.name] = position
        dimensions = tensor.shape[::-1]
        out += _text(tensor.name) + struct.pack("<I", len(dimensions))
        out += struct.pack(f"<{len(dimensions)}Q", *dimensions)
        out += struct.pack("<IQ", tensor.format.type_id, position)
        position = _padded(position + tensor.num_bytes)
    out += bytes(_padded(len(out)) - len(out))
    return bytes(out), {name: len(out) + offset for name, offset in relative.items()}


def _padded(position: int) -> int:
    return -(-position // DEFAULT_ALIGNMENT_BYTES) * DEFAULT_ALIGNMENT_BYTES


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Written) -> bytes:
    """The type of a value and the value."""
    if isinstance(value, Encoded):
        return value.content
    if isinstance(value, str):
        return struct.pack("<I", STRING_TYPE) + _text(value)
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int):
        value = (np.int32 if value < 0 else np.uint32 if value < 2**32 else np.uint64)(value)
    elif isinstance(value, float):
        value = np.float32(value)
    if isinstance(value, np.generic):
        return struct.pack("<I", _type_id(value.dtype)) + _little(np.asarray(value))
    if isinstance(value, np.ndarray):
        head = struct.pack("<IIQ", ARRAY_TYPE, _type_id(value.dtype), len(value))
        return head + _little(value)
    return struct.pack("<IIQ", ARRAY_TYPE, STRING_TYPE, len(value)) + b"".join(map(_text, value))


def _type_id(dtype: np.dtype[Any]) -> int:
    if dtype.name not in _TYPE_IDS:
        raise ValueError(f"GGUF metadata hold no {dtype.name}")
    return _TYPE_IDS[dtype.name]


def _little(values: npt.NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


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


PIECE_WEIGHTS = 1 << 20
"""Weights that are taken at once: 4 MB as float32. Of larger pieces the allocator gives the memory
back to the system after each, and having it cleared again took a quarter of the processor time."""
_MAX_THREADS = 4

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRows:
    """A tensor to be written, and where its rows come from.

    `rows(start, stop)` gives float32 (stop - start, columns), where the rows are those of all
    leading dimensions together. `stored`, where it is given, gives the bytes of the same rows
    instead, in the planned format already: nothing is computed then.
    """

    planned: GGUFTensorSpec
    rows: Callable[[int, int], Floats]
    stored: Callable[[int, int], Bytes] | None = None


def write_tensors(
    writer: GGUFWriter,
    tensors: Iterable[TensorRows],
    importance: Mapping[str, Floats] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes what the writer does not have yet. `progress` is called with numbers of bytes.

    `importance`: name -> (columns,), for the tensors that have one. Errors are those of
    `BlockFormat.quantize`, with the tensor's name in front.
    """
    importance = importance or {}
    pieces = (
        (tensor, first, importance.get(tensor.planned.name))
        for tensor in tensors
        if tensor.planned.name not in writer.done
        for first in range(0, tensor.planned.rows, _rows_of_a_piece(tensor.planned))
    )
    num_threads = max(1, min(_MAX_THREADS, os.cpu_count() or 1))
    # No more pieces are in memory than there are threads, twice.
    waiting: deque[tuple[str, int, Future[Bytes]]] = deque()

    def write_first() -> None:
        name, first, future = waiting.popleft()
        raw = future.result()
        writer.write(name, raw, first)
        if progress:
            progress(raw.size)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="ivl-quantize") as pool:
        try:
            for piece in pieces:
                waiting.append((piece[0].planned.name, piece[1], pool.submit(_encode, *piece)))
                if len(waiting) > num_threads:
                    write_first()
            while waiting:
                write_first()
        finally:
            for _, _, future in waiting:
                future.cancel()


def _rows_of_a_piece(planned: GGUFTensorSpec) -> int:
    return max(1, PIECE_WEIGHTS // planned.shape[-1])


def _encode(tensor: TensorRows, first: int, importance: Floats | None) -> Bytes:
    planned = tensor.planned
    last = min(planned.rows, first + _rows_of_a_piece(planned))
    if tensor.stored is not None:
        return tensor.stored(first, last)
    try:
        return planned.format.quantize(tensor.rows(first, last), importance)
    except IvlError as error:
        raise type(error)(f"{planned.name}: {error.message}", error.hint) from None
