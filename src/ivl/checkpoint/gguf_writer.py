"""Writing a GGUF file of version 3: the header first, then tensors in any order, by rows.

The file grows under a temporary name beside its own and takes that only when all of it is there,
so what stands under the final name is always whole. No tensor is kept: memory is the caller's.
With a fingerprint of what the tensors are made from, an interrupted file stays and is gone on with.

Source: docs/gguf.md in https://github.com/ggml-org/ggml. The layout is in `gguf_header`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ivl.checkpoint.gguf_header import DEFAULT_ALIGNMENT_BYTES, MAGIC
from ivl.checkpoint.gguf_journal import Journal, crc32_of
from ivl.errors import CheckpointError
from ivl.quant.block_format import BlockFormat


@dataclass(frozen=True, slots=True)
class Encoded:
    """A metadata value as another file has it: its type and its bytes (`GGUFFile.encoded`)."""

    content: bytes


Written = bool | int | float | str | Sequence[str] | np.generic | npt.NDArray[Any] | Encoded
"""Whole numbers become u32 (i32 below zero, u64 from 2**32 on), others f32; NumPy's numbers and
arrays keep their type."""

SAFE_BYTES = 1 << 26
"""So much may have to be written again after a power cut."""

_TYPE_IDS = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTensorSpec:
    """A tensor to be written; `shape` is (..., rows, columns), columns next to each other."""

    name: str
    format: BlockFormat
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.format.row_bytes(self.shape[-1])


class GGUFWriter:
    """A file in the making; use it in a `with` statement.

        with GGUFWriter(path, metadata, tensors) as writer:
            for ...:
                writer.write(name, raw)

    Leaving the block in order gives the file its name; leaving it by an exception deletes what
    was written and keeps what stood under the name before.

    With a `fingerprint`, any text that changes when the input does, the exception leaves an
    unfinished file that has a whole tensor, with a journal (`gguf_journal`), and the next writer of
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
        ends = (offset + count for offset, count in self._extents().values())
        return _padded(max(ends, default=len(self.header)))

    @property
    def written_bytes(self) -> int:
        """Of it, those of finished tensors."""
        tensors = self._tensors.values()
        return sum(t.rows * t.row_bytes for t in tensors if not self._rows_left[t.name])

    def write(self, name: str, raw: npt.NDArray[np.integer[Any]], first_row: int = 0) -> None:
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
        return {t.name: (self._offsets[t.name], t.rows * t.row_bytes) for t in tensors}

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
        position = _padded(position + tensor.rows * tensor.row_bytes)
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
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int):
        value = np.int32(value) if value < 0 else np.uint32(value) if value < 2**32 else _u64(value)
    elif isinstance(value, float):
        value = np.float32(value)
    if isinstance(value, np.generic):
        return struct.pack("<I", _type_id(value.dtype)) + _little(np.asarray(value))
    if isinstance(value, np.ndarray):
        head = struct.pack("<IIQ", _ARRAY, _type_id(value.dtype), len(value))
        return head + _little(value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def _type_id(dtype: np.dtype[Any]) -> int:
    if dtype.name not in _TYPE_IDS:
        raise ValueError(f"GGUF metadata hold no {dtype.name}")
    return _TYPE_IDS[dtype.name]


def _little(values: npt.NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()
