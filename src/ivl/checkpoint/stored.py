"""The configuration and the tensors of a model on disk, from headers alone, for planning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ivl.checkpoint.files import open_files
from ivl.checkpoint.gguf_pair import GGUFPair
from ivl.checkpoint.locate import locate_pair
from ivl.checkpoint.safetensors import SafetensorsDirectory
from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.footprint.tensors import AWQ, TypedTensor, decoder_plan, vision_plan

TYPES = {"BF16", "F16", "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """What files hold. `text_file` and `projector_file`: of a GGUF pair, else None."""

    config: ModelConfig
    tensors: tuple[TypedTensor, ...]
    text_file: Path | None = None
    projector_file: Path | None = None


def stored_model(name: str, mmproj: Path | None = None) -> StoredModel:
    """A directory, a GGUF file, `demo` or a model that has been downloaded; nothing is fetched.

    Tensors of GGUF files are as they are there; those of safetensors are listed by the names of
    GGUF, in the type of the files. Errors as in `locate_pair`, `open_files` and `tensors_of`.
    """
    found = locate_pair(name, mmproj, offline=True)
    config, pair = open_files(found.path, found.mmproj)
    return StoredModel(
        config=config,
        tensors=tensors_of(found.path, config, pair),
        text_file=pair.text.path if pair else None,
        projector_file=pair.mmproj.path if pair and pair.mmproj else None,
    )


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
