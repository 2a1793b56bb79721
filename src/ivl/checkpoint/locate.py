"""From what a person calls a model to its files: the bundled one, a size, a path, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from ivl.checkpoint.hub import HubFiles, resolve
from ivl.errors import ConfigError
from ivl.family import find
from ivl.paths import local_path

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
) -> Path:
    """The directory of a model's files, downloaded first when it is on a hub, or the GGUF file of
    its language model. Errors: `resolve`; ConfigError for a revision of a file."""
    return locate_pair(
        model, None, revision=revision, offline=offline, show_progress=show_progress
    ).path


def locate_pair(
    model: str | os.PathLike[str],
    mmproj: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
) -> HubFiles:
    """The same, and the projector's file where one is named or comes from a hub.

    `mmproj` is a file, or the name or type of one in the model's repository.
    """
    name = os.fspath(model)
    projector = None if mmproj is None else local_path(mmproj)
    if name == "demo":
        if revision is not None:
            raise ConfigError("The bundled model has no revision.", "Leave it out.")
        return HubFiles(path=DEMO, mmproj=projector)
    file = local_path(name)
    if file.is_file():
        if revision is not None:
            raise ConfigError(f"{name} is a file, which has no revision.", "Leave it out.")
        return HubFiles(path=file, mmproj=projector)
    size = find(name) if not file.exists() else None
    name = size.hub_id if size else name
    is_file = projector is not None and projector.exists()
    found = resolve(
        name,
        mmproj="" if is_file else None if mmproj is None else os.fspath(mmproj),
        revision=revision,
        offline=offline,
        progress=show_progress,
    )
    return HubFiles(path=found.path, mmproj=found.mmproj or projector)
