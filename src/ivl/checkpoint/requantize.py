"""From one GGUF file to another whose tensors have other types; its metadata stay as they are.

Rows keep their order, so nothing of the model's structure is touched: what is quantized is what is
there, dequantized a piece of rows at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ivl.checkpoint.convert import PlannedFile
from ivl.checkpoint.gguf import GGUFFile, TensorEntry
from ivl.checkpoint.gguf_keys import Keys
from ivl.checkpoint.gguf_metadata import QUANTIZATION_VERSION
from ivl.checkpoint.gguf_pieces import TensorRows
from ivl.checkpoint.gguf_writer import Encoded, GGUFTensorSpec, Written
from ivl.checkpoint.imatrix import ImportanceMatrix
from ivl.errors import ConfigError, UnsupportedError
from ivl.quant.block_format import Bytes, Floats
from ivl.quant.formats import find_format
from ivl.quant.mixes import MixContext, find_mix, tensor_type
from ivl.quant.vision_mix import find_vision_type, vision_file_type, vision_tensor_type

_PLAIN = ("F32", "F16", "BF16")
_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")


def plan_requantized(
    file: GGUFFile,
    path: Path,
    kind: str,
    *,
    imatrix: ImportanceMatrix | None = None,
    allow_requantize: bool = False,
) -> PlannedFile:
    """The file `path`, with the tensors of `file` in the types of the mix `kind`, or of the vision
    type `kind` where it is a projector.

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
    is_projector = keys.text("general.architecture") == "clip"
    has_importance = imatrix is not None
    if is_projector:
        vision_type = find_vision_type(kind)
        file_type = vision_file_type(vision_type)
        wanted = {
            name: vision_tensor_type(vision_type, name, entry.shape)
            for name, entry in file.tensors.items()
        }
    else:
        mix, context = find_mix(kind), _context(keys, has_importance)
        file_type = mix.file_type
        wanted = {
            name: tensor_type(mix.name, name, entry.shape, context)
            for name, entry in file.tensors.items()
        }
    wanted = {name: _kept(name, file.tensors[name], new) for name, new in wanted.items()}
    if not allow_requantize:
        _check_plain(file, wanted)
    tensors = [_rows_of(file, name, wanted[name]) for name in file.tensors]
    metadata = _metadata(file, file_type)
    importance: dict[str, Floats] = {}
    if imatrix is not None:
        importance = dict(imatrix.for_tensors([tensor.planned for tensor in tensors]))
        metadata |= imatrix.record(len(importance))
    return PlannedFile(path=path, metadata=metadata, tensors=tensors, importance=importance)


def _context(keys: Keys, has_importance: bool) -> MixContext:
    name = keys.text("general.architecture")
    heads = keys.count(f"{name}.attention.head_count")
    return MixContext(
        num_layers=keys.count(f"{name}.block_count"),
        queries_per_kv=heads // keys.count(f"{name}.attention.head_count_kv", heads),
        tied_embeddings="output.weight" not in keys.file.tensors,
        has_importance=has_importance,
    )


def _kept(name: str, entry: TensorEntry, new: str) -> str:
    """As llama.cpp does, vectors and the tower's first layer stay in the type that they have."""
    stays = len(entry.shape) < 2 or name in ("v.patch_embd.weight", "v.position_embd.weight")
    return entry.format.name if stays else new


def _check_plain(file: GGUFFile, wanted: Mapping[str, str]) -> None:
    for name, entry in file.tensors.items():
        stored = entry.format.name
        if stored not in _PLAIN and stored != wanted[name]:
            raise ConfigError(
                f"{file.path} is quantized already: {name} is {stored}.",
                "Quantizing twice loses more than quantizing once: start from F32, F16 or BF16, "
                "or give `allow_requantize`.",
            )


def _rows_of(file: GGUFFile, name: str, wanted: str) -> TensorRows:
    entry, kind = file.tensors[name], find_format(wanted)

    def stored(start: int, stop: int) -> Bytes:
        return file.read(name)[start:stop]

    def rows(start: int, stop: int) -> Floats:
        return entry.format.dequantize(stored(start, stop))

    planned = GGUFTensorSpec(name=name, format=kind, shape=entry.shape)
    same = entry.format.name == kind.name
    return TensorRows(planned=planned, rows=rows, stored=stored if same else None)


def _metadata(file: GGUFFile, file_type: int) -> dict[str, Written]:
    """All that the file says but how it is stored, how it is split, and from which matrix."""
    kept: dict[str, Written] = {
        key: Encoded(file.encoded(key))
        for key in file.metadata
        if key not in _REPLACED and not key.startswith(("split.", "quantize.imatrix."))
    }
    kept["general.file_type"] = file_type
    kept["general.quantization_version"] = QUANTIZATION_VERSION
    return kept
