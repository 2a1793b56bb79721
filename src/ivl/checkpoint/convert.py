"""From a model's own tensors, or from a GGUF file, to GGUF files: names, metadata, tensors.

Nothing but a few pieces of rows is in memory at any time, so the machine needs no more for 78B
than for 1B. Files of a pair get their names when both are whole; what an interruption leaves is
gone on with (`GGUFWriter`). From one GGUF file to another rows keep their order: what is quantized
is what is there, dequantized a piece of rows at a time.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ivl.checkpoint.gguf import GGUFFile, GGUFTensorSpec, TensorEntry
from ivl.checkpoint.gguf_config import QUANTIZATION_VERSION, Keys, mmproj_metadata, text_metadata
from ivl.checkpoint.gguf_writer import (
    Encoded,
    GGUFWriter,
    Progress,
    TensorRows,
    Written,
    write_tensors,
)
from ivl.checkpoint.identity import Identity, repository_of
from ivl.checkpoint.imatrix import ImportanceMatrix
from ivl.checkpoint.names import Source, order_of, text_sources, vision_sources
from ivl.config import ModelConfig
from ivl.errors import CapacityError, ConfigError, UnsupportedError
from ivl.paths import local_path
from ivl.prompt.gguf_tokenizer import tokenizer_metadata
from ivl.prompt.template import find_chat_template, get_template
from ivl.quant.block_format import Bytes, Floats
from ivl.quant.formats import find_format
from ivl.quant.mixes import (
    MixContext,
    decoder_tensors,
    find_mix,
    find_vision_type,
    tensor_type,
    vision_file_type,
    vision_tensor_type,
)

if TYPE_CHECKING:
    from torch import Tensor

_SPARE_BYTES = 1 << 24
_INPUTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_PLAIN = ("F32", "F16", "BF16")
_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """What the files hold. `name`: the model's, for people, and in the files' names; `identity`:
    what the source says of itself, which the files go on saying; `vision_type` None: no projector.
    """

    mix: str
    vision_type: str | None
    name: str
    identity: Identity | None = None
    imatrix: ImportanceMatrix | None = None

    @property
    def stated_name(self) -> str:
        return (self.identity.name if self.identity else None) or self.name


def text_file_name(name: str, mix: str) -> str:
    return f"{_safe(name)}-{mix}.gguf"


def mmproj_file_name(name: str, vision_type: str) -> str:
    """As llama.cpp's own names begin, so that programs which pair files by name find it."""
    return f"mmproj-{_safe(name)}-{vision_type}.gguf"


def _safe(name: str) -> str:
    """A name as a part of a file's."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"


def name_of(model: str, directory: Path) -> str:
    """What a model is called: the last part of a hub id, or the directory's name."""
    given = local_path(model)
    if given.exists():
        return given.resolve().name
    name = model if "/" in model else repository_of(directory) or model
    return name.rsplit("/", 1)[-1]


def plan_text(model: OwnTensors, directory: Path, path: Path, options: PairOptions) -> PlannedFile:
    """The decoder's file: its tensors in the types that the mix gives them, layer after layer.

    Errors: those of the tokenizer, of the mix and of the matrix.
    """
    config, mix = model.config, find_mix(options.mix)
    context = MixContext.of(config.decoder, has_importance=options.imatrix is not None)
    by_name = {s.names[0]: (ours, s) for ours, s in text_sources(config.decoder).items()}
    tensors = []
    for name, shape in decoder_tensors(config.decoder).items():
        kind = find_format(tensor_type(mix.name, name, shape, context))
        planned = GGUFTensorSpec(name=name, format=kind, shape=shape)
        tensors.append(_rows_of(model, *by_name[name], 0, planned))
    metadata = text_metadata(
        config,
        tokenizer_metadata(directory, config.decoder.vocab_size),
        name=options.stated_name,
        licence=options.identity,
        num_weights=_num_weights(tensors),
        file_type=mix.file_type,
        chat_template=find_chat_template(directory, get_template(config.template)),
    )
    return _planned(path, metadata, tensors, options.imatrix)


def plan_mmproj(model: OwnTensors, path: Path, options: PairOptions) -> PlannedFile:
    """The projector's file, with the vision tower; q, k and v apart, as llama.cpp's converter does.

    Errors: those of the matrix.
    """
    assert options.vision_type is not None
    assert model.config.vision is not None
    tensors = []
    for ours, source in vision_sources(model.config.vision, ()).items():
        whole = model.shapes[ours]
        shape = (whole[0] // len(source.names), *whole[1:])
        for part, name in enumerate(source.names):
            kind = find_format(vision_tensor_type(options.vision_type, name, shape))
            planned = GGUFTensorSpec(name=name, format=kind, shape=shape)
            tensors.append(_rows_of(model, ours, source, part, planned))
    metadata = mmproj_metadata(
        model.config,
        name=options.stated_name,
        licence=options.identity,
        num_weights=_num_weights(tensors),
        file_type=vision_file_type(options.vision_type),
    )
    return _planned(path, metadata, tensors, options.imatrix)


def plan_requantized(
    file: GGUFFile,
    path: Path,
    kind: str,
    *,
    imatrix: ImportanceMatrix | None = None,
    allow_requantize: bool = False,
) -> PlannedFile:
    """The file `path`, with the tensors of `file` in the types of the mix `kind`, or of the vision
    type `kind` where it is a projector. The metadata stay as they are.

    ConfigError for tensors that are quantized already, unless that is allowed, and for an output
    that is the input; UnsupportedError for an unknown type, and for a file that is no model.
    """
    if path.exists() and any(os.path.samefile(path, part) for part in file.files):
        raise ConfigError(f"{path} is the input itself.", "Choose another output.")
    keys = Keys(file)
    what = keys.text("general.type", "model")
    if what not in ("model", "mmproj"):
        raise UnsupportedError(
            f"{file.path} is of type {what!r}, not a model.",
            "Give a language model or a projector.",
        )
    architecture = keys.text("general.architecture")
    if architecture == "clip":
        vision_type = find_vision_type(kind)
        file_type = vision_file_type(vision_type)
        wanted = {
            name: vision_tensor_type(vision_type, name, entry.shape)
            for name, entry in file.tensors.items()
        }
    else:
        mix, heads = find_mix(kind), keys.count(f"{architecture}.attention.head_count")
        file_type = mix.file_type
        context = MixContext(
            num_layers=keys.count(f"{architecture}.block_count"),
            queries_per_kv=heads // keys.count(f"{architecture}.attention.head_count_kv", heads),
            tied_embeddings="output.weight" not in file.tensors,
            has_importance=imatrix is not None,
        )
        wanted = {
            name: tensor_type(mix.name, name, entry.shape, context)
            for name, entry in file.tensors.items()
        }
    tensors = []
    for name, entry in file.tensors.items():
        # As llama.cpp does, vectors and the tower's first layer stay in the type that they have.
        stays = len(entry.shape) < 2 or name in ("v.patch_embd.weight", "v.position_embd.weight")
        stored = entry.format.name
        new = stored if stays else wanted[name]
        if not allow_requantize and stored not in (*_PLAIN, new):
            raise ConfigError(
                f"{file.path} is quantized already: {name} is {stored}.",
                "Quantizing twice loses more than quantizing once: start from F32, F16 or BF16, "
                "or give `allow_requantize`.",
            )
        tensors.append(_requantized(file, entry, new))
    # All that the file says but how it is stored, how it is split, and from which matrix.
    metadata: dict[str, Written] = {
        key: Encoded(file.encoded(key))
        for key in file.metadata
        if key not in _REPLACED and not key.startswith(("split.", "quantize.imatrix."))
    }
    metadata["general.file_type"] = file_type
    metadata["general.quantization_version"] = QUANTIZATION_VERSION
    return _planned(path, metadata, tensors, imatrix)


def _planned(
    path: Path,
    metadata: Mapping[str, Written],
    tensors: list[TensorRows],
    imatrix: ImportanceMatrix | None,
) -> PlannedFile:
    importance: Mapping[str, Floats] = {}
    if imatrix is not None:
        importance = imatrix.for_tensors([tensor.planned for tensor in tensors])
        metadata = {**metadata, **imatrix.record(len(importance))}
    return PlannedFile(path=path, metadata=metadata, tensors=tensors, importance=importance)


def _num_weights(tensors: Iterable[TensorRows]) -> int:
    return sum(math.prod(tensor.planned.shape) for tensor in tensors)


def fingerprint_of(paths: Iterable[Path], imatrix: ImportanceMatrix | None) -> str:
    """Changes when one of the files does (by name, size and time), or the matrix."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    if imatrix is not None:
        digest.update(imatrix.path.read_bytes())
    return digest.hexdigest()


def files_of(directory: Path) -> list[Path]:
    """The files of a model directory from which a conversion is made."""
    return [path for pattern in _INPUTS for path in sorted(directory.glob(pattern))]


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
    model: OwnTensors, ours: str, source: Source, part: int, planned: GGUFTensorSpec
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


def _requantized(file: GGUFFile, entry: TensorEntry, wanted: str) -> TensorRows:
    kind = find_format(wanted)

    def stored(start: int, stop: int) -> Bytes:
        return file.read(entry.name)[start:stop]

    def rows(start: int, stop: int) -> Floats:
        return entry.format.dequantize(stored(start, stop))

    planned = GGUFTensorSpec(name=entry.name, format=kind, shape=entry.shape)
    same = entry.format.name == kind.name
    return TensorRows(planned=planned, rows=rows, stored=stored if same else None)
