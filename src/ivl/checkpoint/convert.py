"""From a model's own tensors to a GGUF pair: the decoder's file and the projector's.

Nothing but a few pieces of rows is in memory at any time, so the machine needs no more for 78B
than for 1B. Both files get their names when both are whole; what an interruption leaves is gone on
with (`GGUFWriter`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ivl.checkpoint.gguf_names import GGUFSource, order_of, text_sources, vision_sources
from ivl.checkpoint.gguf_pieces import Progress, TensorRows, write_tensors
from ivl.checkpoint.gguf_writer import GGUFTensorSpec, GGUFWriter, Written
from ivl.config import ModelConfig
from ivl.errors import CapacityError, ConfigError
from ivl.quant.block_format import Floats
from ivl.quant.formats import find_format
from ivl.quant.mixes import MixContext, decoder_tensors, tensor_type
from ivl.quant.vision_mix import vision_tensor_type

if TYPE_CHECKING:
    from torch import Tensor

_SPARE_BYTES = 1 << 24


class OwnTensors(Protocol):
    """A model's tensors under ivl's names, read one at a time (`ivl.model.build`)."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedFile:
    """A GGUF file that is to be written."""

    path: Path
    metadata: Mapping[str, Written]
    tensors: list[TensorRows] = field(repr=False)
    importance: Mapping[str, Floats]

    @property
    def planned(self) -> list[GGUFTensorSpec]:
        return [tensor.planned for tensor in self.tensors]

    def writer(self, fingerprint: str | None) -> GGUFWriter:
        return GGUFWriter(self.path, self.metadata, self.planned, fingerprint=fingerprint)


def plan_text_tensors(
    model: OwnTensors, mix: str, *, has_importance: bool = False
) -> list[TensorRows]:
    """The decoder's tensors in the types that the mix gives them, layer after layer."""
    config = model.config
    context = MixContext.of(config.decoder, has_importance=has_importance)
    by_name = {s.names[0]: (ours, s) for ours, s in text_sources(config.decoder).items()}
    tensors = []
    for name, shape in decoder_tensors(config.decoder).items():
        ours, source = by_name[name]
        kind = find_format(tensor_type(mix, name, shape, context))
        planned = GGUFTensorSpec(name=name, format=kind, shape=shape)
        tensors.append(_rows_of(model, ours, source, 0, planned))
    return tensors


def plan_vision_tensors(model: OwnTensors, vision_type: str) -> list[TensorRows]:
    """The tower's and the projector's tensors; q, k and v apart, as llama.cpp's converter does."""
    assert model.config.vision is not None
    tensors = []
    for ours, source in vision_sources(model.config.vision, ()).items():
        whole = model.shapes[ours]
        shape = (whole[0] // len(source.names), *whole[1:])
        for part, name in enumerate(source.names):
            kind = find_format(vision_tensor_type(vision_type, name, shape))
            planned = GGUFTensorSpec(name=name, format=kind, shape=shape)
            tensors.append(_rows_of(model, ours, source, part, planned))
    return tensors


def write_files(
    text: PlannedFile | None,
    mmproj: PlannedFile | None,
    *,
    fingerprint: str,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the files, or goes on with them. Returns how many bytes an earlier, interrupted run
    had written already.

    `fingerprint`: any text that changes when the input does. ConfigError for a file that is there
    already (unless `force`), CapacityError when the disk has not room for all, CheckpointError
    when it fails on the way.
    """
    planned = [file for file in (text, mmproj) if file is not None]
    for file in planned:
        if file.path.exists() and not force:
            raise ConfigError(
                f"{file.path} exists.", "`force` replaces it; or choose another name."
            )
    with ExitStack() as stack:
        writers = [stack.enter_context(file.writer(fingerprint)) for file in planned]
        done = sum(writer.written_bytes for writer in writers)
        total = sum(writer.num_bytes for writer in writers)
        check_space(planned[0].path.parent, total - done)
        meter = _Meter(progress, done, total)
        for file, writer in zip(planned, writers, strict=True):
            write_tensors(writer, file.tensors, file.importance, meter.add)
        meter.add(total - meter.done)  # what lies between tensors
    return done


class _Meter:
    """Adds up bytes for a progress bar."""

    def __init__(self, progress: Progress | None, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self.progress:
            self.progress(self.done, self.total)


def check_space(directory: Path, num_bytes: int) -> None:
    """CapacityError unless the disk has room for so many bytes more."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes + _SPARE_BYTES:
        raise CapacityError(
            f"The disk of {directory} has {free / 1e9:.1f} GB free, and {num_bytes / 1e9:.1f} GB "
            "are needed.",
            "Make room, choose another directory, or a smaller type.",
        )


def _rows_of(
    model: OwnTensors, ours: str, source: GGUFSource, part: int, planned: GGUFTensorSpec
) -> TensorRows:
    """Part `part` of our tensor, in the order of rows that the file has."""
    order = order_of(source, model.config)
    # The file's rows from ours: the inverse of what reading does.
    inverse = None if order is None else np.argsort(order)
    num_rows = planned.rows

    def rows(start: int, stop: int) -> Floats:
        import torch

        # A view of the mapped file, so that only these rows are ever read.
        tensor = model.read(ours)
        if len(planned.shape) == 1:
            if inverse is not None:
                tensor = tensor[torch.from_numpy(inverse)]
            length = planned.shape[0]
            return _float32(tensor[part * length : (part + 1) * length][None])
        flat = tensor.reshape(-1, planned.shape[-1])
        if inverse is not None:
            return _float32(flat[torch.from_numpy(inverse[start:stop])])
        return _float32(flat[part * num_rows + start : part * num_rows + stop])

    return TensorRows(planned=planned, rows=rows)


def _float32(tensor: Tensor) -> Floats:
    return tensor.float().contiguous().numpy()
