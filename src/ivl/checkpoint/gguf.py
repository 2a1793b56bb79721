"""A GGUF file, or the parts that one was split into, as metadata and named tensors.

    "GGUF", version u32, number of tensors u64, number of metadata entries u64
    metadata   key (string), type u32, value
    tensors    name (string), number of dimensions u32, dimensions u64 (columns first), type u32,
               offset u64 from the start of the data
    data       from the next multiple of `general.alignment` (32 where it is silent)

A string is its length (u64) and its bytes (UTF-8); an array is the type of its elements (u32), its
length (u64) and the elements. All numbers are little-endian. Counts, lengths and offsets are
compared with what is left of the file before anything is allocated. Nothing is copied: a tensor is
a view of the mapped file, so memory is taken only for what is used, and the system can drop it.

Source: docs/gguf.md in https://github.com/ggml-org/ggml, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivl.errors import CheckpointError, UnsupportedError
from ivl.quant.block_format import BlockFormat
from ivl.quant.formats import FORMATS, FORMATS_BY_ID
from ivl.refused import refuse_lfs_pointer, refuse_pickle

Scalar = int | float | bool | str
Value = Scalar | list[Any] | npt.NDArray[Any]
"""Strings in an array are a list, numbers and truth values an array that cannot be written to."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEY_BYTES = 65535
DEFAULT_ALIGNMENT_BYTES = 32
# Far above any real file, and low enough that a lying header costs some megabytes at most.
MAX_ENTRIES = 1 << 16
MAX_NESTED_ARRAYS = 1 << 12
MAX_DEPTH = 4
MAX_DIMENSIONS = 4
REPAIR = "Download the file again, and compare its size with the hub's."

# Types of metadata values.
STRING_TYPE, ARRAY_TYPE = 8, 9
NUMBER_TYPES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32",
    7: "bool", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip
_DTYPES = {number: np.dtype(name).newbyteorder("<") for number, name in NUMBER_TYPES.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# Tensor types that other programs write and that ivl does not read (ggml_type in ggml.h).
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTensorSpec:
    """A tensor of a file; `shape` is (..., rows, columns), the columns lying next to each other in
    memory: the reverse of the file's own order."""

    name: str
    format: BlockFormat
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """UnsupportedError for rows that the format cannot hold."""
        return self.format.row_bytes(self.shape[-1])

    @property
    def num_bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry(GGUFTensorSpec):
    """What a header says of one tensor. `offset` is in bytes from the start of the file.

    Leading dimensions of one are left out: to ggml, whose tensors all have four, they say nothing,
    and some writers keep them.
    """

    file: Path
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One file's header, and its bytes as mapped memory."""

    file: Path
    version: int
    metadata: dict[str, Value]
    extents: dict[str, tuple[int, int]]
    """Where the type and the value of each metadata entry begin and end in `data`."""
    tensors: dict[str, TensorEntry]
    data: mmap.mmap


def read_header(file: Path) -> Header:
    """Map a file and read its header.

    CheckpointError when the file is missing, damaged or no GGUF file; UnsupportedError for
    version 1, for big-endian files and for tensor types that ivl does not read.
    """
    data = _map(file)
    cursor = _Cursor(file, data)
    version = _version(cursor)
    num_tensors = cursor.count("tensors", least_bytes=24, at_most=MAX_ENTRIES)
    num_entries = cursor.count("metadata entries", least_bytes=13, at_most=MAX_ENTRIES)
    metadata: dict[str, Value] = {}
    extents: dict[str, tuple[int, int]] = {}
    for _ in range(num_entries):
        key = cursor.string(MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.damaged(f"has the metadata {key!r} twice")
        begin = cursor.position
        metadata[key] = cursor.value(cursor.u32())
        extents[key] = begin, cursor.position
    tensors: dict[str, TensorEntry] = {}
    for _ in range(num_tensors):
        name = cursor.string(MAX_KEY_BYTES)
        if name in tensors:
            raise cursor.damaged(f"has the tensor {name!r} twice")
        tensors[name] = _tensor(cursor, name)
    return Header(
        file=file,
        version=version,
        metadata=metadata,
        extents=extents,
        tensors=_place(cursor, tensors, metadata),
        data=data,
    )


def read_role(file: Path) -> tuple[str, int]:
    """What a file is in a model: its architecture, and which part of a split file (from 0).

    From the first of its metadata: a vocabulary is not read for it. In a part behind the first the
    architecture may be missing, and is then empty. Errors as `read_header`, for what is read.
    """
    cursor = _Cursor(file, _map(file))
    _version(cursor)
    cursor.count("tensors", least_bytes=24, at_most=MAX_ENTRIES)
    wanted: dict[str, Value] = {"general.architecture": "", "split.no": 0}
    for _ in range(cursor.count("metadata entries", least_bytes=13, at_most=MAX_ENTRIES)):
        key = cursor.string(MAX_KEY_BYTES)
        value = cursor.value(cursor.u32())
        if key in wanted:
            wanted[key] = value
            if key == "general.architecture":
                break  # the first part has it, as the first of its metadata
    architecture, part = wanted.values()
    return str(architecture), part if isinstance(part, int) else 0


class _Cursor:
    """A position in a mapped file; every step is checked against the file's end."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file = file
        self.data = data
        self.size = len(data)
        self.position = 0
        self._num_nested = 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file} {what}.", REPAIR)

    def truncated(self) -> CheckpointError:
        return self.damaged(f"is truncated or damaged: its header ends at byte {self.size}")

    def skip(self, num_bytes: int) -> int:
        """Step over bytes; returns where they begin."""
        start = self.position
        if num_bytes > self.size - start:
            raise self.truncated()
        self.position = start + num_bytes
        return start

    def u32(self) -> int:
        return _U32.unpack_from(self.data, self.skip(4))[0]

    def u64(self) -> int:
        return _U64.unpack_from(self.data, self.skip(8))[0]

    def count(self, what: str, *, least_bytes: int, at_most: int | None = None) -> int:
        """A number of things that take at least so many bytes each."""
        number = self.u64()
        left = self.size - self.position
        if number * least_bytes > left or (at_most is not None and number > at_most):
            raise self.damaged(f"claims {number} {what}, more than it can hold")
        return number

    def string(self, max_bytes: int | None = None) -> str:
        length = self.u64()
        if max_bytes is not None and length > max_bytes:
            raise self.damaged(f"has a name of {length} bytes")
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise self.damaged(f"holds text at byte {start} that is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind == STRING_TYPE:
            return self.string()
        if kind == ARRAY_TYPE:
            return self._array(depth + 1)
        return self._numbers(kind, 1)[0].item()

    def _array(self, depth: int) -> Value:
        kind = self.u32()
        if kind == STRING_TYPE:
            return self._strings(self.count("strings", least_bytes=8))
        if kind != ARRAY_TYPE:
            width = self._dtype(kind).itemsize
            return self._numbers(kind, self.count("elements of an array", least_bytes=width))
        number = self.count("arrays in an array", least_bytes=12)
        self._num_nested += number
        if depth >= MAX_DEPTH or self._num_nested > MAX_NESTED_ARRAYS:
            raise self.damaged("nests arrays deeper, or more of them, than any real file")
        return [self._array(depth + 1) for _ in range(number)]

    def _dtype(self, kind: int) -> np.dtype[Any]:
        if kind not in _DTYPES:
            raise self.damaged(f"has metadata of the unknown type {kind}")
        return _DTYPES[kind]

    def _numbers(self, kind: int, number: int) -> npt.NDArray[Any]:
        dtype = self._dtype(kind)
        start = self.skip(number * dtype.itemsize)
        values = np.frombuffer(self.data, dtype, number, start) if number else np.empty(0, dtype)
        if dtype.kind == "b" and number and values.view(np.uint8).max() > 1:
            raise self.damaged("has a truth value that is neither 0 nor 1")
        return values

    def _strings(self, number: int) -> list[str]:
        # Vocabularies hold 300,000 strings; this loop is most of the time that a header takes.
        found: list[str] = []
        data, size, position, length_at = self.data, self.size, self.position, _U64.unpack_from
        try:
            for _ in range(number):
                if size - position < 8:
                    raise self.truncated()
                start = position + 8
                position = start + length_at(data, position)[0]
                if position > size:
                    raise self.truncated()
                found.append(data[start:position].decode())
        except UnicodeDecodeError:
            raise self.damaged(f"holds text before byte {position} that is not UTF-8") from None
        self.position = position
        return found


def _map(file: Path) -> mmap.mmap:
    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        raise CheckpointError(f"{file} {what}.", "Give the path of a *.gguf file.")
    try:
        with file.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read: {error.strerror}.", "Check its permissions and its disk."
        ) from None
    except ValueError:
        raise CheckpointError(f"{file} is empty.", REPAIR) from None


def _version(cursor: _Cursor) -> int:
    start = cursor.data[:8]
    if start[:4] != MAGIC:
        refuse_lfs_pointer(cursor.file)
        refuse_pickle(cursor.file)
        is_older = start.startswith((b"lmgg", b"tjgg", b"fmgg"))
        raise CheckpointError(
            f"{cursor.file} is no GGUF file.",
            "It is of a format older than GGUF; take a newer file." if is_older else REPAIR,
        )
    cursor.position = 4
    version = cursor.u32()
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(
            f"{cursor.file} is a big-endian GGUF file.", "Take the little-endian one."
        )
    if version not in VERSIONS:
        raise UnsupportedError(
            f"{cursor.file} is of version {version} of GGUF.",
            "ivl reads versions 2 and 3; convert the model anew with a recent program.",
        )
    return version


def _tensor(cursor: _Cursor, name: str) -> TensorEntry:
    """An entry whose offset is still relative to the data's start."""
    num_dimensions = cursor.u32()
    if num_dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"gives the tensor {name!r} {num_dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(num_dimensions))[::-1] or (1,)
    type_id, offset = cursor.u32(), cursor.u64()
    found = FORMATS_BY_ID.get(type_id)
    if found is None:
        known = _OTHER_TYPES.get(type_id, f"number {type_id}")
        raise UnsupportedError(
            f"{cursor.file}: the tensor {name!r} is of type {known}.",
            f"ivl reads {', '.join(FORMATS)}; take a file of one of these.",
        )
    if 0 in shape or shape[-1] % found.block_size:
        raise cursor.damaged(f"gives the tensor {name!r} the shape {shape}, not one of {found}")
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return TensorEntry(name=name, file=cursor.file, format=found, shape=shape, offset=offset)


def _place(
    cursor: _Cursor, tensors: dict[str, TensorEntry], metadata: dict[str, Value]
) -> dict[str, TensorEntry]:
    """The entries with offsets from the file's start; none overlaps another or leaves the file."""
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.damaged(f"asks for an alignment of {alignment!r}, which is no power of two")
    start = -(-cursor.position // alignment) * alignment
    end, previous = start, ""
    placed: dict[str, TensorEntry] = {}
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].offset):
        offset = start + entry.offset
        if entry.offset % alignment:
            raise cursor.damaged(f"puts the tensor {name!r} at {entry.offset}, unaligned")
        if offset < end:
            raise cursor.damaged(f"lets the tensors {previous!r} and {name!r} overlap")
        end, previous = offset + entry.num_bytes, name
        placed[name] = replace(entry, offset=offset)
    if end > cursor.size and tensors:
        raise cursor.damaged(f"is truncated: {end - cursor.size} of {end} bytes are missing")
    return {name: placed[name] for name in tensors}


# How llama.cpp names parts (llama_split_path in llama.h), counted from one.
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_TOGETHER = "Put all parts into one directory, under the names that they were published with."


class GGUFFile:
    """All tensors of a model file; read-only.

    Attributes:
        path: as given; of a split file any part will do.
        files: all parts, in order.
        metadata: key -> value; numbers as int, float and bool, text as str, arrays of numbers as
            NumPy arrays, arrays of text as lists. Of a split file that of the first part.
        tensors: name -> where and how it is stored.

    The mapped file must not be shortened while it is in use: the system ends programs that touch
    memory whose file is gone.
    """

    def __init__(self, path: Path) -> None:
        """CheckpointError for files that are missing, damaged or not of one model, UnsupportedError
        for what ivl does not read."""
        self.path = path
        given = read_header(path)
        headers = _all_parts(given)
        self.files: tuple[Path, ...] = tuple(header.file for header in headers)
        self.version = headers[0].version
        self.metadata: dict[str, Value] = headers[0].metadata
        self.tensors: dict[str, TensorEntry] = _merged(headers)
        self._data: dict[Path, mmap.mmap] = {header.file: header.data for header in headers}
        self._extents = headers[0].extents

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, uint8 (rows, row_bytes): a view that cannot be written to.

        The rows are those of all leading dimensions together. Raises KeyError for unknown names.
        """
        entry = self.tensors[name]
        flat = np.frombuffer(self._data[entry.file], np.uint8, entry.num_bytes, entry.offset)
        return flat.reshape(entry.rows, entry.row_bytes)

    def encoded(self, key: str) -> bytes:
        """The type and the value of a metadata entry, as the file has them: a copy of them keeps
        what `metadata` does not tell, the width of numbers. Raises KeyError for unknown keys."""
        begin, end = self._extents[key]
        return self._data[self.files[0]][begin:end]


def _all_parts(given: Header) -> list[Header]:
    """The headers of all parts of the file that `given` is, or is a part of."""
    count = given.metadata.get("split.count", 1)
    if type(count) is not int or count < 2:
        return [given]
    match = _PART_NAME.fullmatch(given.file.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{given.file} is one of {count} parts, but its name does not say which.",
            f"It should end in -00001-of-{count:05}.gguf or the like. {_TOGETHER}",
        )
    paths = [
        given.file.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{given.file.parent} lacks {len(missing)} of {count} parts of the model: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            _TOGETHER,
        )
    headers = [given if path == given.file else read_header(path) for path in paths]
    for number, header in enumerate(headers):
        found = header.metadata.get("split.no"), header.metadata.get("split.count")
        if found != (number, count):
            raise CheckpointError(
                f"{header.file} is not part {number + 1} of {count}, as its name says.", _TOGETHER
            )
    return headers


def _merged(headers: list[Header]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for entry in (entry for header in headers for entry in header.tensors.values()):
        known = tensors.setdefault(entry.name, entry)
        if known is not entry:
            raise CheckpointError(
                f"The tensor {entry.name!r} is both in {known.file.name} and in {entry.file.name}.",
                _TOGETHER,
            )
    expected = headers[0].metadata.get("split.tensors.count", len(tensors))
    if len(headers) > 1 and expected != len(tensors):
        raise CheckpointError(
            f"The parts of {headers[0].file} hold {len(tensors)} tensors, not {expected}.",
            "The parts are of different versions of a model; download all of them again.",
        )
    return tensors
