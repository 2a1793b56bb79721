"""Writing a GGUF file of version 3: the header first, then tensors in any order, by rows.

The file grows under a temporary name beside its own and takes that only when all of it is there,
so what stands under the final name is always whole. No tensor is kept: memory is the caller's.

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
from typing import Any

import numpy as np
import numpy.typing as npt

from ivl.checkpoint.gguf_header import DEFAULT_ALIGNMENT_BYTES, MAGIC
from ivl.errors import CheckpointError
from ivl.quant.block_format import BlockFormat

Written = bool | int | float | str | Sequence[str] | np.generic | npt.NDArray[Any]
"""Whole numbers become u32 (i32 below zero, u64 from 2**32 on), others f32; NumPy's numbers and
arrays keep their type."""

_TYPE_IDS = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
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
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, Written], tensors: Sequence[PlannedTensor]
    ) -> None:
        """Raises UnsupportedError for rows that a format cannot hold, CheckpointError when the
        file cannot be made, ValueError for names that occur twice."""
        self.path = path
        self.partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._tensors = {tensor.name: tensor for tensor in tensors}
        if len(self._tensors) != len(tensors):
            raise ValueError("two tensors share a name")
        header, offsets = _header(metadata, tensors)
        self._offsets = offsets
        self._rows_left = {tensor.name: tensor.rows for tensor in tensors}
        try:
            self._stream = self.partial.open("wb")
        except OSError as error:
            raise self._failed(error) from None
        self._put(0, header)

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
        finally:
            self._stream.close()
            self.partial.unlink(missing_ok=True)

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


def _header(
    metadata: Mapping[str, Written], tensors: Sequence[PlannedTensor]
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
