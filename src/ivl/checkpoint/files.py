"""What the files at a path are: a directory of safetensors, or a GGUF pair. Headers alone are read.

Everything that loads, plans or describes a model begins here, so that all say the same of a path
that is none.
"""

from __future__ import annotations

from pathlib import Path

from ivl.checkpoint.gguf_config import read_gguf_config
from ivl.checkpoint.gguf_pair import GGUFPair, is_gguf, open_pair
from ivl.checkpoint.pickle_file import refuse_pickle
from ivl.config import ModelConfig, read_config
from ivl.errors import CheckpointError, RequestError
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.unmerged import ADAPTER_FILES, refuse_adapter


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
