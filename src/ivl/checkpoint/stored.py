"""The tensors of a model on disk, from headers alone, for planning."""

from __future__ import annotations

from pathlib import Path

from ivl.checkpoint.gguf_pair import GGUFPair
from ivl.checkpoint.safetensors import SafetensorsDirectory
from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.footprint.tensors import AWQ, TypedTensor, decoder_plan, vision_plan

TYPES = {"BF16", "F16", "F32"}


def tensors_of(path: Path, config: ModelConfig, pair: GGUFPair | None) -> tuple[TypedTensor, ...]:
    """The tensors of files that `open_files` has opened. UnsupportedError for safetensors that hold
    no weights of 16 or 32 bits."""
    if pair is not None:
        return tuple(
            TypedTensor(called, tuple(entry.shape), entry.format.name)
            for file in (pair.text, *([pair.mmproj] if pair.mmproj else []))
            for called, entry in file.tensors.items()
        )
    stored = SafetensorsDirectory(path).tensors.values()
    kinds = {info.dtype for info in stored} & TYPES
    if not kinds:
        raise UnsupportedError(f"{path} holds no weights of 16 or 32 bits.")
    # The files' commonest type; a few norms in another one change nothing that counts.
    kind = max(kinds, key=lambda dtype: sum(info.dtype == dtype for info in stored))
    decoder = decoder_plan(config.decoder, AWQ if config.quantization == "awq" else kind)
    seeing = (tensor._replace(format=kind) for tensor in vision_plan(config, kind))
    return (*decoder, *seeing)
