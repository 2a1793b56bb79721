"""From what a person calls a model to its files: the bundled one, a size, a path, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from ivl.checkpoint.hub import resolve
from ivl.errors import ConfigError
from ivl.family import find

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
) -> Path:
    """The directory of a model's files, downloaded first when it is on a hub, or the file itself
    where a file is named. Errors: `resolve`; ConfigError for a revision of a file."""
    name = os.fspath(model)
    if name == "demo":
        return DEMO
    file = Path(name).expanduser()
    if file.is_file():
        if revision is not None:
            raise ConfigError(f"{name} is a file, which has no revision.", "Leave it out.")
        return file
    size = find(name) if not Path(name).exists() else None
    name = size.hub_id if size else name
    return resolve(name, revision=revision, offline=offline, progress=show_progress)
