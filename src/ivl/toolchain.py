"""What this machine lacks to build the C++ extension, and how to get it.

Needs nothing but the standard library, so that the Makefile can run this file before anything is
installed: it prints one word, which names what is missing.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++", "icpx", "cl")
"""What CMake looks for, beside `$CXX`."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that is missing, and the packages that bring it; `word` is for the Makefile."""

    word: str
    name: str
    debian: str
    fedora: str


def missing_tools() -> list[Tool]:
    """What has to be installed before the extension can be built; empty: nothing."""
    missing = []
    wanted = os.environ.get("CXX", "").split()[:1]
    if not any(shutil.which(name) for name in (*wanted, *COMPILERS)):
        missing.append(Tool("compiler", "a C++ compiler", "g++", "gcc-c++"))
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        missing.append(Tool("headers", "Python's headers", _debian_headers(), "python3-devel"))
    return missing


def advice(missing: list[Tool] | None = None) -> str:
    """One line: why ivl runs slowly here, and what to install.

    `missing`: by default what is missing now; nothing may be, where a compiler came after ivl.
    """
    tools = missing_tools() if missing is None else missing
    again = "install ivl again (`make demo` in its directory, or `pip install .`)"
    if not tools:
        return (
            "ivl was installed without its C++ kernels, and is slow. All that they need is here "
            f"now: {again}."
        )
    names = " and ".join(tool.name for tool in tools)
    return (
        f"ivl was installed without its C++ kernels, because {names} was missing, and is slow. "
        f"Install {_command(tools)}, then {again}."
    )


def _command(tools: list[Tool]) -> str:
    """The packages, and how this system installs them."""
    debian = " ".join(tool.debian for tool in tools)
    fedora = " ".join(tool.fedora for tool in tools)
    if sys.platform == "darwin":
        return "Xcode's tools (xcode-select --install)"
    if shutil.which("apt-get"):
        return f"{debian} (apt-get install {debian})"
    if shutil.which("dnf"):
        return f"{fedora} (dnf install {fedora})"
    return f"{debian} (Debian's names)"


def _debian_headers() -> str:
    """Debian's package of headers for this Python, which may not be the system's own."""
    version = f"python3.{sys.version_info.minor}"
    own = Path("/usr/bin/python3")
    return "python3-dev" if own.resolve().name in (version, "python3") else f"{version}-dev"


if __name__ == "__main__":
    print("-".join(tool.word for tool in missing_tools()) or "nothing")
