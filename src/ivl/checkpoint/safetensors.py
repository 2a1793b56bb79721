"""A directory of safetensors files, one or many, as one set of named tensors.

The headers are read and checked first, so that a damaged download is found before any memory is
taken. Source of the layout: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ivl.checkpoint.pickle_file import find_pickle, refuse_pickle
from ivl.errors import CheckpointError
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.unmerged import refuse_adapter, refuse_sharded_training, refuse_unmerged_tensors

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


def _indexed_files(index: Path) -> list[Path]:
    refuse_lfs_pointer(index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is no index of safetensors files.", REPAIR) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            raise CheckpointError(f"{index} names {name!r}, which is not a plain file name.")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of its {len(names)} files of weights: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            "Download them into the same directory.",
        )
    return [index.parent / name for name in names]
