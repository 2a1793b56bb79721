"""Importance matrices: how large the inputs of each matrix are, column by column.

Two layouts, both llama.cpp's, are read; the first one is written.

GGUF: `general.type` imatrix, `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`, and
for each matrix of the model, by its name in GGUF, two F32 tensors: NAME.in_sum2 (1, columns), sums
of squares, and NAME.counts (1, 1), of how many inputs.

The older `.dat`, all numbers little-endian, i32 or f32: number of entries; for each the length of
its name, the name, calls, number of values, values (mean squares times calls); then, optionally,
the number of chunks, the length of the data set's name, and that name.

Source: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp in
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ivl.checkpoint.gguf import MAGIC, GGUFFile, GGUFTensorSpec
from ivl.checkpoint.gguf_writer import GGUFWriter, Written
from ivl.errors import CheckpointError
from ivl.quant.formats import find_format
from ivl.refused import refuse_lfs_pointer

Values = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_WRONG = "Write it anew with `ivl imatrix`, or with llama.cpp's llama-imatrix."
_MAX_ENTRIES = 1 << 16
_MAX_NAME_BYTES = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceMatrix:
    """Mean squares (columns,) by the names that matrices have in GGUF.

    `counts`: of how many inputs each is the mean. `datasets`, `num_chunks`: what it was made from.
    """

    path: Path
    means: Mapping[str, Values]
    counts: Mapping[str, int]
    datasets: Sequence[str] = ()
    num_chunks: int = 0
    chunk_tokens: int = 0

    def for_tensors(self, tensors: Iterable[GGUFTensorSpec]) -> dict[str, Values]:
        """What there is for the matrices of a file.

        CheckpointError when an entry has another length than its matrix, or nothing fits at all:
        the matrix is that of another model.
        """
        columns = {t.name: t.shape[-1] for t in tensors if len(t.shape) == 2}
        found = {name: values for name, values in self.means.items() if name in columns}
        for name, values in found.items():
            if len(values) != columns[name]:
                raise CheckpointError(
                    f"{self.path} has {len(values)} values for {name}, whose rows have "
                    f"{columns[name]}.",
                    "The importance matrix is that of another model.",
                )
        missing = [name for name in columns if name.startswith("blk.") and name not in found]
        if missing and len(missing) < len(columns) and found:
            raise CheckpointError(
                f"{self.path} has nothing for {len(missing)} matrices of the model, such as "
                f"{missing[0]}.",
                "The importance matrix is that of a smaller model, or was not finished.",
            )
        if not found and any(name.startswith("blk.") for name in columns):
            raise CheckpointError(
                f"{self.path} has nothing for any matrix of this model.",
                "The importance matrix is that of another model.",
            )
        return found

    def record(self, num_used: int) -> dict[str, Written]:
        """What a quantized file says of the matrix, as llama.cpp writes it."""
        return {
            "quantize.imatrix.file": self.path.name,
            "quantize.imatrix.dataset": ", ".join(self.datasets),
            "quantize.imatrix.entries_count": num_used,
            "quantize.imatrix.chunks_count": self.num_chunks,
        }


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Either layout. CheckpointError for files that are missing, damaged or of another kind."""
    refuse_lfs_pointer(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", _WRONG) from None
    found = _read_gguf(path) if start == MAGIC else _read_dat(path)
    for name, values in found.means.items():
        if not (np.isfinite(values) & (values >= 0)).all():
            raise CheckpointError(f"{path} has impossible values for {name}.", _WRONG)
    if not found.means:
        raise CheckpointError(f"{path} holds no importance matrix.", _WRONG)
    return found


def write_imatrix(
    path: Path,
    sums: Mapping[str, Values],
    counts: Mapping[str, int],
    *,
    datasets: Sequence[str],
    num_chunks: int,
    chunk_tokens: int,
) -> None:
    """As GGUF. `sums`: sums of squares (columns,); `counts`: of how many inputs."""
    kind = find_format("F32")
    tensors = []
    for name in sorted(sums):
        shape = (1, len(sums[name]))
        tensors.append(GGUFTensorSpec(name=name + _SUMS, format=kind, shape=shape))
        tensors.append(GGUFTensorSpec(name=name + _COUNTS, format=kind, shape=(1, 1)))
    metadata: dict[str, Written] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(datasets),
        "imatrix.chunk_count": num_chunks,
        "imatrix.chunk_size": chunk_tokens,
    }
    with GGUFWriter(path, metadata, tensors) as writer:
        for name, values in sums.items():
            writer.write(name + _SUMS, kind.quantize(values.astype(np.float32)[None]))
            count = np.array([[counts[name]]], np.float32)
            writer.write(name + _COUNTS, kind.quantize(count))


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = GGUFFile(path)
    means: dict[str, Values] = {}
    counts: dict[str, int] = {}
    for key in file.tensors:
        if not key.endswith(_SUMS):
            continue
        name = key.removesuffix(_SUMS)
        if name + _COUNTS not in file.tensors:
            raise CheckpointError(f"{path} has sums for {name} but no counts.", _WRONG)
        sums, number = _floats(file, key), _floats(file, name + _COUNTS)
        if len(sums) != 1 or number.size != 1:
            continue  # one matrix for each expert of a mixture, which ivl does not run
        counts[name] = int(number[0, 0])
        # A matrix that no input met counts as llama.cpp has it: all columns alike.
        divisor = counts[name] if counts[name] > 0 else 1
        plain = sums[0] if counts[name] > 0 else np.ones_like(sums[0])
        means[name] = np.asarray(plain / np.float32(divisor), np.float32)
    datasets = file.metadata.get("imatrix.datasets", [])
    return ImportanceMatrix(
        path=path,
        means=means,
        counts=counts,
        datasets=[str(name) for name in datasets] if isinstance(datasets, list) else [],
        num_chunks=_whole(file, "imatrix.chunk_count"),
        chunk_tokens=_whole(file, "imatrix.chunk_size"),
    )


def _floats(file: GGUFFile, name: str) -> Values:
    entry = file.tensors[name]
    if entry.format.name != "F32":
        raise CheckpointError(f"{file.path} has values of type {entry.format.name}.", _WRONG)
    return np.ascontiguousarray(file.read(name)).view("<f4")


def _whole(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, 0)
    return value if type(value) is int else 0


def _read_dat(path: Path) -> ImportanceMatrix:
    cursor = _Dat(path)
    means: dict[str, Values] = {}
    counts: dict[str, int] = {}
    for _ in range(cursor.whole(1, _MAX_ENTRIES)):
        name = cursor.text(cursor.whole(1, _MAX_NAME_BYTES))
        calls = cursor.whole(0, 1 << 31)
        values = cursor.floats(cursor.whole(1, 1 << 31))
        counts[name] = calls
        means[name] = np.asarray(values / max(calls, 1), np.float32)
    num_chunks, datasets = 0, []
    if cursor.left >= 4:
        num_chunks = cursor.whole(0, 1 << 31)
        if cursor.left >= 4:
            datasets = [cursor.text(cursor.whole(0, cursor.left))]
    return ImportanceMatrix(
        path=path, means=means, counts=counts, datasets=datasets, num_chunks=num_chunks
    )


class _Dat:
    """A position in the older layout; nothing beyond its end is ever asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.content) - self.position

    def _take(self, num_bytes: int) -> bytes:
        if num_bytes > self.left:
            raise self._damaged()
        self.position += num_bytes
        return self.content[self.position - num_bytes : self.position]

    def whole(self, least: int, most: int) -> int:
        value = struct.unpack("<i", self._take(4))[0]
        if not least <= value <= most:
            raise self._damaged()
        return value

    def text(self, num_bytes: int) -> str:
        return self._take(num_bytes).decode("utf-8", "replace")

    def floats(self, number: int) -> Values:
        return np.frombuffer(self._take(4 * number), "<f4").astype(np.float32)

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"{self.path} is no importance matrix, or a damaged one.", _WRONG)
