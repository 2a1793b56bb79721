"""The configuration and the tensors of a model on disk, from headers alone, for planning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ivl.checkpoint.files import open_files
from ivl.checkpoint.locate import locate_pair
from ivl.checkpoint.safetensors import SafetensorsDirectory
from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.planner.tensors import AWQ, PlannedTensor, decoder_plan, vision_plan

TYPES = {"BF16": "BF16", "F16": "F16", "F32": "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """What files hold. `text_file` and `projector_file`: of a GGUF pair, else None."""

    config: ModelConfig
    tensors: tuple[PlannedTensor, ...]
    text_file: Path | None = None
    projector_file: Path | None = None


def stored_model(name: str, mmproj: Path | None = None) -> StoredModel:
    """A directory, a GGUF file, `demo` or a model that has been downloaded; nothing is fetched.

    Tensors of GGUF files are as they are there; those of safetensors are listed by the names of
    GGUF, in the type of the files. Errors as in `locate_pair` and `open_files`.
    """
    found = locate_pair(name, mmproj, offline=True)
    config, pair = open_files(found.path, found.mmproj)
    if pair is not None:
        files = [pair.text, *([pair.mmproj] if pair.mmproj else [])]
        return StoredModel(
            config=config,
            tensors=tuple(
                PlannedTensor(called, tuple(entry.shape), entry.format.name)
                for file in files
                for called, entry in file.tensors.items()
            ),
            text_file=pair.text.path,
            projector_file=pair.mmproj.path if pair.mmproj else None,
        )
    stored = SafetensorsDirectory(found.path).tensors.values()
    kinds = {info.dtype for info in stored} & set(TYPES)
    if not kinds:
        raise UnsupportedError(f"{found.path} holds no weights of 16 or 32 bits.")
    # The files' commonest type; a few norms in another one change nothing that counts.
    kind = max(kinds, key=lambda dtype: sum(info.dtype == dtype for info in stored))
    decoder = decoder_plan(config.decoder, AWQ if config.quantization == "awq" else TYPES[kind])
    seeing = (_plain(tensor, TYPES[kind]) for tensor in vision_plan(config, TYPES[kind]))
    return StoredModel(config=config, tensors=(*decoder, *seeing))


def _plain(tensor: PlannedTensor, kind: str) -> PlannedTensor:
    return PlannedTensor(tensor.name, tensor.shape, kind)
