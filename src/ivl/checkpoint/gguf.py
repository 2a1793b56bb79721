"""A GGUF file, or the parts that one was split into, as metadata and named tensors.

Nothing is copied: a tensor is a view of the mapped file, so memory is taken only for what is used,
and the system can drop it again.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ivl.checkpoint.gguf_header import Header, TensorEntry, Value, read_header
from ivl.errors import CheckpointError

__all__ = ["GGUFFile", "TensorEntry", "Value"]

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
    for header in headers:
        for name, entry in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"The tensor {name!r} is both in {tensors[name].file.name} "
                    f"and in {header.file.name}.",
                    _TOGETHER,
                )
            tensors[name] = entry
    expected = headers[0].metadata.get("split.tensors.count", len(tensors))
    if len(headers) > 1 and expected != len(tensors):
        raise CheckpointError(
            f"The parts of {headers[0].file} hold {len(tensors)} tensors, not {expected}.",
            "The parts are of different versions of a model; download all of them again.",
        )
    return tensors
