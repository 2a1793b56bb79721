"""Plans the files of a GGUF pair from a model directory: names, metadata, tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl.checkpoint.convert import (
    OwnTensors,
    PlannedFile,
    plan_text_tensors,
    plan_vision_tensors,
)
from ivl.checkpoint.gguf_metadata import count_weights, mmproj_metadata, text_metadata
from ivl.checkpoint.gguf_pieces import TensorRows
from ivl.checkpoint.identity import Identity
from ivl.checkpoint.imatrix import ImportanceMatrix
from ivl.paths import local_path
from ivl.prompt.chat_template import find_chat_template
from ivl.prompt.gguf_vocabulary import tokenizer_metadata
from ivl.prompt.template import get_template
from ivl.quant.block_format import Floats
from ivl.quant.mixes import find_mix
from ivl.quant.vision_mix import vision_file_type

_INPUTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


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


def plan_text(model: OwnTensors, directory: Path, path: Path, options: PairOptions) -> PlannedFile:
    """The decoder's file. Errors: those of the tokenizer, of the mix and of the matrix."""
    config, mix = model.config, find_mix(options.mix)
    tensors = plan_text_tensors(model, mix.name, has_importance=options.imatrix is not None)
    metadata = text_metadata(
        config,
        tokenizer_metadata(directory, config.decoder.vocab_size),
        name=options.stated_name,
        licence=options.identity,
        num_weights=count_weights({t.planned.name: t.planned.shape for t in tensors}),
        file_type=mix.file_type,
        chat_template=find_chat_template(directory, get_template(config.template)),
    )
    return _planned(path, metadata, tensors, options.imatrix)


def plan_mmproj(model: OwnTensors, path: Path, options: PairOptions) -> PlannedFile:
    """The projector's file, with the vision tower."""
    assert options.vision_type is not None
    tensors = plan_vision_tensors(model, options.vision_type)
    metadata = mmproj_metadata(
        model.config,
        name=options.stated_name,
        licence=options.identity,
        num_weights=count_weights({t.planned.name: t.planned.shape for t in tensors}),
        file_type=vision_file_type(options.vision_type),
    )
    return _planned(path, metadata, tensors, options.imatrix)


def exact_vision_type(stored_type: str) -> str:
    """The type in which a tower that is stored so stays exactly what it is."""
    return stored_type if stored_type in ("F16", "BF16") else "F32"


def fingerprint_of(directory: Path, *others: str) -> str:
    """Changes when a file of the model does (by name, size and time), or one of `others`."""
    digest = hashlib.sha256()
    for pattern in _INPUTS:
        for path in sorted(directory.glob(pattern)):
            found = path.stat()
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    for other in others:
        digest.update(other.encode() + b"\n")
    return digest.hexdigest()


def name_of(model: str, directory: Path) -> str:
    """What a model is called: the last part of a hub id, or the directory's name."""
    given = local_path(model)
    if given.exists():
        return given.resolve().name
    return model.rsplit("/", 1)[-1] if "/" in model else _hub_name(directory) or model


def _hub_name(directory: Path) -> str | None:
    """From a directory of the hub's cache, `models--OWNER--NAME/snapshots/COMMIT`."""
    for part in directory.parts:
        if part.startswith("models--"):
            return part.rsplit("--", 1)[-1]
    return None


def _planned(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: list[TensorRows],
    imatrix: ImportanceMatrix | None,
) -> PlannedFile:
    importance: dict[str, Floats] = {}
    whole = dict(metadata)
    if imatrix is not None:
        importance |= imatrix.for_tensors([tensor.planned for tensor in tensors])
        whole |= imatrix.record(len(importance))
    return PlannedFile(path=path, metadata=whole, tensors=tensors, importance=importance)


def _safe(name: str) -> str:
    """A name as a part of a file's."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "model"
