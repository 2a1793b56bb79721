"""A directory of safetensors files, one or many, as one set of named tensors; read and written.

The headers are read and checked first, so that a damaged download is found before any memory is
taken. A file that is written gets its name when it is whole; until then it ends in `.partial`. What
is in a directory under a final name can be relied on, which is how an interrupted run goes on.

Source of the layout: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from ivl.errors import CheckpointError
from ivl.refused import (
    find_pickle,
    refuse_adapter,
    refuse_lfs_pointer,
    refuse_pickle,
    refuse_sharded_training,
    refuse_unmerged_tensors,
)

if TYPE_CHECKING:  # headers are read without torch, for `ivl info` is to answer at once
    from torch import Tensor

# Bytes per element of the types that weights are stored in.
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
MAX_HEADER_BYTES = 100_000_000
MOST_MAPPED_BYTES = 128 << 20
"""After so many a file is mapped anew: the pages that were read would stay in memory, beside what
was made of them, as long as the file is open."""
INDEX_NAME = "model.safetensors.index.json"
_DELETE = "Delete it and fetch the model again."
REPAIR = "Download the file again, and compare its size with the hub's."


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a header says of one tensor. `dtype` is the format's name, for example BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class SafetensorsDirectory:
    """All tensors of a model directory; read-only, nothing is loaded until `read`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, TensorInfo] = {}
        for file in _files(directory):
            for name, info in read_header(file).items():
                if name in self.tensors:
                    raise CheckpointError(
                        f"The tensor {name} is both in {self.tensors[name].file.name} "
                        f"and in {file.name}.",
                        "The directory mixes two downloads; keep the files of one.",
                    )
                self.tensors[name] = info
        refuse_unmerged_tensors(directory, self.tensors)
        self._open: tuple[Path, Any] | None = None
        self._read_bytes = 0

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in the type that it is stored in."""
        file = self.tensors[name].file
        try:
            if self._open is None or self._open[0] != file or self._read_bytes > MOST_MAPPED_BYTES:
                self._open, self._read_bytes = (file, safe_open(file, framework="pt")), 0
            tensor = self._open[1].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}.", REPAIR) from None
        self._read_bytes += tensor.nbytes
        return tensor


def read_header(file: Path) -> dict[str, TensorInfo]:
    """What the file holds; CheckpointError when it is truncated, or no safetensors file."""
    refuse_lfs_pointer(file)
    refuse_pickle(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file} is truncated, or no safetensors file.", REPAIR)
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is no safetensors file: its header is no JSON.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is no safetensors file: its header is no JSON object.")
    header.pop("__metadata__", None)
    tensors, extents = {}, []
    for name, entry in header.items():
        tensors[name], extent = _tensor_info(file, name, entry)
        extents.append((*extent, name))
    _check_extents(file, extents, size - 8 - length)
    return tensors


def _tensor_info(file: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """A tensor, and where its bytes begin and end behind the header."""
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{file}: the header's entry for {name} is damaged.", REPAIR
        ) from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{file}: the tensor {name} is of type {dtype}.",
            f"Types that can be read: {', '.join(DTYPE_BYTES)}.",
        )
    counts = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
    if not counts or end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise CheckpointError(f"{file}: the extent of {name} does not fit its shape.", REPAIR)
    return TensorInfo(file=file, dtype=dtype, shape=shape), (begin, end)


def _check_extents(file: Path, extents: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The tensors must lie one behind the other, and fill the file."""
    position = 0
    for begin, end, name in sorted(extents):
        if begin != position:
            what = "overlaps the one before it" if begin < position else "is not where it should be"
            raise CheckpointError(f"{file}: the tensor {name} {what}.", REPAIR)
        position = end
    if position > data_bytes:
        raise CheckpointError(
            f"{file} is truncated: {position - data_bytes} of {position} bytes are missing.", REPAIR
        )
    if position < data_bytes:
        raise CheckpointError(
            f"{file} has {data_bytes - position} bytes more than its tensors fill.", REPAIR
        )


def _files(directory: Path) -> list[Path]:
    """As transformers has it, a whole file comes before the index of several."""
    single, index = directory / "model.safetensors", directory / INDEX_NAME
    if not single.exists() and index.exists():
        return _indexed_files(index)
    files = [single] if single.exists() else sorted(directory.glob("*.safetensors"))
    if not files:
        refuse_adapter(directory)
        pickle = find_pickle(directory) if directory.is_dir() else None
        if pickle is not None:
            raise CheckpointError(
                f"{directory} holds its weights as pickle ({pickle.name}).",
                "Pickle files can run code, so ivl never opens them. "
                "Take a repository with *.safetensors.",
            )
        refuse_sharded_training(directory)
        raise CheckpointError(f"{directory} has no *.safetensors file.", _hint_of(directory))
    return files


_UNFINISHED = ("*.incomplete", "*.part", "*.partial", "*.crdownload", "*.download", "*.aria2")
"""What browsers and programs call a file that they have not finished."""


def _hint_of(directory: Path) -> str:
    """Where the weights may be instead."""
    cache = directory / ".cache/huggingface/download"
    unfinished = [
        path for folder in (directory, cache) for end in _UNFINISHED for path in folder.glob(end)
    ]
    if unfinished:
        return f"{unfinished[0].name} is a download that was not finished: run it again."
    below = sorted(path.parent for path in directory.glob("*/*.safetensors"))
    if below:
        return f"There are some in {below[-1]}: give that directory."
    if any(directory.glob("*.distcp")) or any(directory.glob("*/*.distcp")):
        return "A training run's own checkpoint (*.distcp) is no model: save it whole first."
    return "A model directory holds config.json, tokenizer files and *.safetensors."


def read_index(index: Path) -> list[str]:
    """The names of the files that an index lists; CheckpointError for one that is damaged."""
    refuse_lfs_pointer(index)
    what = f"{index} is no index of safetensors files"
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        names = []
    if not names:
        raise CheckpointError(f"{what}.", _DELETE)
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            raise CheckpointError(f"{what}: {name!r} is not a plain file name.", _DELETE)
    return names


def _indexed_files(index: Path) -> list[Path]:
    names = read_index(index)
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of its {len(names)} files of weights: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            "Download them into the same directory.",
        )
    return [index.parent / name for name in names]


DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsTensorSpec:
    """A tensor that will be written. `dtype` is the format's name, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class SafetensorsWriter:
    """Writes groups of tensors in the order of the plan; a group never spans two files."""

    def __init__(
        self, directory: Path, plan: Sequence[Sequence[SafetensorsTensorSpec]], max_shard_bytes: int
    ) -> None:
        """plan: groups, such as the tensors of a layer. `max_shard_bytes` holds unless one group
        alone is larger."""
        self.directory = directory
        self._shards = _shards(plan, max_shard_bytes)
        self._files = [
            directory / _file_name(number, len(self._shards)) for number in range(len(self._shards))
        ]
        self._queue: list[SafetensorsTensorSpec] = []
        self._stream: BinaryIO | None = None
        self._shard = 0

    @property
    def finished_groups(self) -> int:
        """Groups at the beginning of the plan that an earlier run has written whole."""
        finished = 0
        for file, groups in zip(self._files, self._shards, strict=True):
            if not _holds(file, [tensor for group in groups for tensor in group]):
                break
            finished += len(groups)
        return finished

    def skip(self, num_groups: int) -> None:
        """Goes on behind groups that are written (`finished_groups`)."""
        while num_groups > 0:
            num_groups -= len(self._shards[self._shard])
            self._shard += 1
        assert num_groups == 0, "only whole files can be skipped"

    def write(self, name: str, tensor: Tensor) -> None:
        """Appends the next tensor of the plan."""
        import torch  # who writes a tensor has it already, who reads headers need not wait for it

        if self._stream is None:
            self._begin_shard()
        assert self._stream is not None
        expected = self._queue.pop(0)
        found = (name, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
        assert found == (expected.name, expected.dtype, expected.shape), (found, expected)
        try:
            raw = tensor.contiguous().reshape(-1).view(torch.uint8)
            self._stream.write(raw.numpy().data)
            if not self._queue:
                self._end_shard()
        except OSError as error:
            raise _cannot_write(self.directory, error) from None

    def close(self) -> None:
        """Writes the index, where there are several files. All tensors must have been written."""
        assert self._shard == len(self._shards), "tensors are missing"
        if len(self._shards) == 1:
            return
        tensors = {
            tensor.name: (file.name, tensor.num_bytes)
            for file, groups in zip(self._files, self._shards, strict=True)
            for group in groups
            for tensor in group
        }
        index = {
            "metadata": {"total_size": sum(size for _, size in tensors.values())},
            "weight_map": {name: file for name, (file, _) in tensors.items()},
        }
        text = json.dumps(index, indent=1) + "\n"
        (self.directory / INDEX_NAME).write_text(text, encoding="utf-8")

    def _begin_shard(self) -> None:
        self._queue = [tensor for group in self._shards[self._shard] for tensor in group]
        entries, position = {}, 0
        for tensor in self._queue:
            end = position + tensor.num_bytes
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        try:
            self._stream = self._partial.open("wb")
            self._stream.write(struct.pack("<Q", len(header)) + header)
        except OSError as error:
            raise _cannot_write(self.directory, error) from None

    def _end_shard(self) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None
        self._partial.replace(self._files[self._shard])
        self._shard += 1

    @property
    def _partial(self) -> Path:
        file = self._files[self._shard]
        return file.with_name(file.name + ".partial")


def _shards(
    plan: Sequence[Sequence[SafetensorsTensorSpec]], max_bytes: int
) -> list[list[Sequence[SafetensorsTensorSpec]]]:
    shards: list[list[Sequence[SafetensorsTensorSpec]]] = []
    room = 0
    for group in plan:
        size = sum(tensor.num_bytes for tensor in group)
        if not shards or size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(group)
        room -= size
    return shards


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def _holds(file: Path, tensors: list[SafetensorsTensorSpec]) -> bool:
    """Whether a file is there, whole, and has these tensors."""
    if not file.is_file():
        return False
    try:
        found = read_header(file)
    except CheckpointError:
        return False
    return {name: (info.dtype, info.shape) for name, info in found.items()} == {
        tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors
    }


def _cannot_write(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{directory} cannot be written: {error.strerror}.", "Free some space, and run it again."
    )
