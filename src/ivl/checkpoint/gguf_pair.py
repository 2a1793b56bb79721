"""The GGUF files that make one model: the text model's and, for a model that sees, the projector's.

Which is which follows from the metadata, never from the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_header import MAGIC
from ivl.errors import CheckpointError

_PICK = "Name the text model's file, and the projector's with --mmproj."


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

    Without `mmproj` the projector is looked for beside the text file. Raises CheckpointError when
    there are several to choose from, when files are damaged or missing; see `GGUFFile`.
    """
    if path.is_dir():
        text, projectors = _sort(sorted(path.glob("*.gguf")))
        if len(text) != 1:
            names = ", ".join(file.path.name for file in text) or "none"
            raise CheckpointError(f"{path} holds {len(text)} text models: {names}.", _PICK)
        chosen = text[0]
    else:
        chosen = GGUFFile(path)
        projectors = []
        if mmproj is None and chosen.metadata.get("general.architecture") != "clip":
            others = sorted(set(path.parent.glob("*.gguf")) - set(chosen.files))
            projectors = _sort(others)[1]
    if mmproj is not None:
        if not mmproj.exists():
            raise CheckpointError(f"There is no file {mmproj}.", "It is the projector's GGUF file.")
        return GGUFPair(text=chosen, mmproj=GGUFFile(mmproj))
    if len(projectors) > 1:
        names = ", ".join(file.path.name for file in projectors)
        raise CheckpointError(
            f"{chosen.path.parent} holds {len(projectors)} projectors: {names}.",
            "Choose one with --mmproj.",
        )
    return GGUFPair(text=chosen, mmproj=projectors[0] if projectors else None)


def _sort(paths: list[Path]) -> tuple[list[GGUFFile], list[GGUFFile]]:
    """Text models and projectors among the files; of a split file one stands for all parts."""
    text: list[GGUFFile] = []
    projectors: list[GGUFFile] = []
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            continue
        file = GGUFFile(path)
        seen.update(file.files)
        is_projector = file.metadata.get("general.architecture") == "clip"
        (projectors if is_projector else text).append(file)
    return text, projectors
