"""From what a person calls a model to its directory: the bundled one, a size, a path, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from ivl.checkpoint.hub import resolve
from ivl.family import find

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    show_progress: bool = False,
) -> Path:
    """The directory of a model's files, downloaded first when it is on a hub. Errors: `resolve`."""
    name = os.fspath(model)
    if name == "demo":
        return DEMO
    size = find(name) if not Path(name).exists() else None
    name = size.hub_id if size else name
    return resolve(name, revision=revision, offline=offline, progress=show_progress)
