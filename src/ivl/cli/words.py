"""Errors in the words of the command line.

The Python API's own words are what errors are written in, an option between backticks: `max_tiles`,
`device="cpu"`. Here such a name becomes the option of the command that runs, --max-tiles and
--device cpu, if it has one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar

_NAMED = re.compile(r'`([a-z_]+)(?:="?([\w.:,-]+)"?)?`')
_ALTERNATIVE = re.compile(r",? or [^,.;`]*`([a-z_]+)`[^,.;]*")
# A model repeats what it reads, and a picture, or the name of a file, may hold commands for a
# terminal. Of the control characters only tab and newline pass.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_options: ContextVar[Mapping[str, str]] = ContextVar("options")


def speak_of(options: Mapping[str, str]) -> None:
    """From now on a command runs with these options: the parameter's name to the option's."""
    _options.set(options)


def spoken(text: str) -> str:
    """The text with options as one types them. An alternative ("..., or raise `max_pixels`") that
    the command does not have is left out."""
    options = _options.get({})

    def without_what_is_not_there(found: re.Match[str]) -> str:
        return found[0] if found[1] in options else ""

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found[0]
        return options[name] if value is None else f"{options[name]} {value}"

    return _NAMED.sub(option, _ALTERNATIVE.sub(without_what_is_not_there, text))


def clean(text: str) -> str:
    """The text without what commands a terminal."""
    return text.translate(_CONTROLS)


def print_error(message: str, hint: str) -> None:
    """What is wrong and what to do about it, on stderr."""
    print(f"error: {clean(spoken(message))}", file=sys.stderr)
    if hint:
        print(f"hint: {clean(spoken(hint))}", file=sys.stderr)
