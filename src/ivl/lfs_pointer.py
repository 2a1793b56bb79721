"""Git LFS pointers: the small text files that `git clone` leaves where git-lfs is not installed.

Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: the first line of a pointer is
its version.
"""

from __future__ import annotations

from pathlib import Path

from ivl.errors import CheckpointError

_STARTS = (b"version https://git-lfs.github.com/spec/", b"version http://git-media.io/v/")
NUM_START_BYTES = max(len(start) for start in _STARTS)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file with these first bytes (`NUM_START_BYTES` are enough) is a pointer."""
    return start.startswith(_STARTS)


def lfs_complaint(name: object, directory: object = "") -> tuple[str, str]:
    """What is wrong with the file of that name, and what helps."""
    where = f" in {directory}" if str(directory) not in ("", ".") else ""
    return (
        f"{name} is a Git LFS pointer, not the file itself.",
        f"Run `git lfs install` once and `git lfs pull`{where}, or download the file itself.",
    )


def refuse_lfs_pointer(path: Path) -> None:
    """CheckpointError for a pointer; what cannot be opened is left to who reads it."""
    try:
        with path.open("rb") as file:
            start = file.read(NUM_START_BYTES)
    except OSError:
        return
    if is_lfs_pointer(start):
        raise CheckpointError(*lfs_complaint(path, path.parent))
