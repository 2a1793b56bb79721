"""From what people type, paste and drop to the path of a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

_FILE_ADDRESS = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)


def names_file(name: str | os.PathLike[str]) -> bool:
    """Whether a file of that name is there; False for what cannot be a name."""
    try:
        return local_path(name).is_file()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path that is meant: `~` is a home directory, and a `file://` address names its file.

    A shell expands `~` unless it is quoted, and nobody does for a program. What exists under the
    very name that was given is taken as it is.
    """
    text = os.fspath(name)
    address = _FILE_ADDRESS.match(text)
    if address:
        path = unquote(text[address.end() :])
        return Path(path[1:] if re.match(r"/[A-Za-z]:[\\/]", path) and os.name == "nt" else path)
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text) if os.path.lexists(text) else Path(text).expanduser()
    except (RuntimeError, ValueError):  # nobody of that name has a home; a zero byte
        return Path(text)
