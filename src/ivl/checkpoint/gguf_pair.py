"""The GGUF files that make one model: the text model's and, for a model that sees, the projector's.

Which is which follows from the metadata, never from the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_header import MAGIC, read_role
from ivl.errors import CheckpointError, IvlError

PROJECTOR = "clip"
"""The architecture of projectors' files."""

_PICK = "Name the text model's file, and the projector's with `mmproj`."


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFPair:
    """`mmproj` is None for a model that is used without images."""

    text: GGUFFile
    mmproj: GGUFFile | None

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.text.files, *(self.mmproj.files if self.mmproj else ()))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        parts = [self.text, *([self.mmproj] if self.mmproj else [])]
        return sum(entry.num_bytes for part in parts for entry in part.tensors.values())


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
    _refuse_damaged_projector(beside)
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


def _refuse_damaged_projector(found: _Sorted) -> None:
    """A model would be loaded as one that is blind, for the projector could not be read."""
    if not found.projectors:
        for path, error in found.damaged.items():
            if "mmproj" in path.name.lower():
                raise error


def _sort(paths: Iterable[Path]) -> _Sorted:
    found = _Sorted(text=[], projectors=[], damaged={})
    for path in sorted(paths):
        try:
            role = read_role(path)
        except IvlError as error:
            found.damaged[path] = error
            continue
        if role.part == 0:
            kind = found.projectors if role.architecture == PROJECTOR else found.text
            kind.append(path)
    return found
