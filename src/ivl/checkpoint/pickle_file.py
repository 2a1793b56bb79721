"""Recognises pickle by what is in a file, whatever the file is called. Nothing is unpickled.

torch.save writes a ZIP archive that holds `data.pkl`; before version 1.6 it wrote bare pickle, and
in its first months a tar archive. Bare pickle begins with the opcode PROTO and the protocol's
number, from protocol 2 on; that of 0 and 1 is known by its opcodes, which are read and not obeyed.

Source: the opcodes in Lib/pickletools.py of Python, `_legacy_save` in torch/serialization.py.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

from ivl.errors import CheckpointError

_PROTO, _PROTOCOLS = 0x80, range(2, 6)
_ZIP = b"PK\x03\x04"
_TAR_AT, _TAR = 257, b"ustar"
_START_BYTES = 4096
_ENOUGH_OPCODES = 16


def is_pickle(path: Path) -> bool:
    """Whether reading a file as its writer meant it would run pickle; False for what is no file."""
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return False
    if start.startswith(_ZIP):
        return _holds_pickle(path)
    if start[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return True  # no other kind of model is a tar archive
    if start[:1] == bytes([_PROTO]):
        return len(start) > 1 and start[1] in _PROTOCOLS
    return _is_made_of_opcodes(start)


def refuse_pickle(path: Path) -> None:
    """CheckpointError for a pickle."""
    if is_pickle(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run any code when it is read.",
            "ivl reads safetensors and GGUF; most repositories have one of them as well.",
        )


def find_pickle(directory: Path) -> Path | None:
    """The first file of a directory that is a pickle, if there is one."""
    return next((path for path in sorted(directory.iterdir()) if is_pickle(path)), None)


def _is_made_of_opcodes(start: bytes) -> bool:
    """Whether nothing but opcodes comes up to the last one, or for a good while."""
    count = 0
    try:
        for opcode, _, _ in pickletools.genops(start):
            count += 1
            if count == _ENOUGH_OPCODES:
                return True
            if opcode.name == "STOP":
                return count > 2
    except (ValueError, UnicodeDecodeError):
        return False
    return False


def _holds_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return True  # cut off: torch's archives are the only ones that a model is taken for
