"""Writes a model as safetensors files with an index, tensor after tensor.

A file gets its name when it is whole; until then it ends in `.partial`. What is in a directory
under a final name can be relied on, which is how an interrupted run goes on.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ivl.checkpoint.safetensors import DTYPE_BYTES, INDEX_NAME, read_header
from ivl.errors import CheckpointError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
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
        if self._stream is None:
            self._begin_shard()
        assert self._stream is not None
        expected = self._queue.pop(0)
        found = (name, DTYPES[tensor.dtype], tuple(tensor.shape))
        assert found == (expected.name, expected.dtype, expected.shape), (found, expected)
        try:
            self._stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
