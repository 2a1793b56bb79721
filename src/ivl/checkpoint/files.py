"""What the files at a path are: a directory of safetensors, or a GGUF pair. Headers alone are read.

Everything that loads, plans or describes a model begins here, so that all say the same of a path
that is none. Which file of a pair is which follows from the metadata, never from the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ivl.checkpoint.gguf import MAGIC, GGUFFile, read_role
from ivl.checkpoint.gguf_config import read_gguf_config
from ivl.checkpoint.safetensors import SafetensorsDirectory
from ivl.config import ModelConfig, read_config
from ivl.errors import CheckpointError, IvlError, RequestError, UnsupportedError
from ivl.footprint.tensors import AWQ, TypedTensor, decoder_plan, vision_plan
from ivl.refused import ADAPTER_FILES, refuse_adapter, refuse_lfs_pointer, refuse_pickle

PROJECTOR = "clip"
"""The architecture of projectors' files."""

_PICK = "Name the text model's file, and the projector's with `mmproj`."


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFPair:
    """`mmproj` is None for a model that is used without images."""

    text: GGUFFile
    mmproj: GGUFFile | None

    @property
    def parts(self) -> tuple[GGUFFile, ...]:
        return (self.text, self.mmproj) if self.mmproj else (self.text,)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for part in self.parts for file in part.files)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(entry.num_bytes for part in self.parts for entry in part.tensors.values())


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes, or a directory of such files that has no
    config.json."""
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob("*.gguf"))
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_pair(path: Path, mmproj: Path | None = None) -> GGUFPair:
    """The pair of a text file, or of a directory that holds one model.

    Without `mmproj` the projector is looked for beside the text file; what else lies there may be
    damaged, unless it is called a projector and there is no other. Raises CheckpointError when
    there are several to choose from, when files are damaged or missing; see `GGUFFile`.
    """
    if path.is_dir():
        sorted_files = _sort(path.glob("*.gguf"))
        if len(sorted_files.text) != 1:
            names = ", ".join(file.name for file in sorted_files.text) or "none"
            if not sorted_files.text and sorted_files.damaged:
                raise next(iter(sorted_files.damaged.values()))
            raise CheckpointError(
                f"{path} holds {len(sorted_files.text)} text models: {names}.", _PICK
            )
        chosen = GGUFFile(sorted_files.text[0])
        beside = sorted_files
    else:
        chosen = GGUFFile(path)
        is_text = chosen.metadata.get("general.architecture") != PROJECTOR
        looks = mmproj is None and is_text
        beside = _sort(set(path.parent.glob("*.gguf")) - set(chosen.files) if looks else ())
    if mmproj is not None:
        if not mmproj.exists():
            raise CheckpointError(f"There is no file {mmproj}.", "It is the projector's GGUF file.")
        return GGUFPair(text=chosen, mmproj=GGUFFile(mmproj))
    projectors = beside.projectors
    if not projectors:
        # A model would be loaded as one that is blind, for the projector could not be read.
        for damaged, error in beside.damaged.items():
            if "mmproj" in damaged.name.lower():
                raise error
    if len(projectors) > 1:
        names = ", ".join(file.name for file in projectors)
        raise CheckpointError(
            f"{chosen.path.parent} holds {len(projectors)} projectors: {names}.",
            "Choose one with `mmproj`.",
        )
    return GGUFPair(text=chosen, mmproj=GGUFFile(projectors[0]) if projectors else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sorted:
    """Files by what their first metadata say; of a split file its first part alone."""

    text: list[Path]
    projectors: list[Path]
    damaged: dict[Path, IvlError]


def _sort(paths: Iterable[Path]) -> _Sorted:
    found = _Sorted(text=[], projectors=[], damaged={})
    for path in sorted(paths):
        try:
            architecture, part = read_role(path)
        except IvlError as error:
            found.damaged[path] = error
            continue
        if part == 0:
            kind = found.projectors if architecture == PROJECTOR else found.text
            kind.append(path)
    return found


def open_files(path: Path, mmproj: Path | None = None) -> tuple[ModelConfig, GGUFPair | None]:
    """The configuration of a directory, a GGUF file or a directory of GGUF files, with its pair.

    Raises CheckpointError for files that are missing, damaged or no model, RequestError for a
    projector that no GGUF file goes with; `read_config` and `open_pair` have others.
    """
    if is_gguf(path):
        pair = open_pair(path, mmproj)
        return read_gguf_config(pair.text, pair.mmproj), pair
    if path.is_file():
        refuse_lfs_pointer(path)
        if path.name in ADAPTER_FILES:
            refuse_adapter(path.parent)
        refuse_pickle(path)
        raise CheckpointError(
            f"{path} is no model.",
            "A model is a directory with config.json and safetensors, or a GGUF file.",
        )
    if mmproj is not None:
        raise needs_no_projector(path)
    return read_config(path), None


def needs_no_projector(model: object) -> RequestError:
    """The error of a projector that was named beside a whole model."""
    return RequestError(
        "`mmproj` is the projector of a GGUF text model.",
        f"{model} is a whole model; leave it out.",
    )


TYPES = {"BF16", "F16", "F32"}


def tensors_of(path: Path, config: ModelConfig, pair: GGUFPair | None) -> tuple[TypedTensor, ...]:
    """The tensors of files that `open_files` has opened. UnsupportedError for safetensors that hold
    no weights of 16 or 32 bits."""
    if pair is not None:
        return tuple(
            TypedTensor(called, tuple(entry.shape), entry.format.name)
            for file in pair.parts
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
