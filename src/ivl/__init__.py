"""ivl runs the InternVL 2.5 vision-language models.

    model = ivl.load("demo")
    print(model.ask("receipt.png", "What is the total?").text)

`import ivl` is cheap: torch, numpy and Pillow are loaded by the names that need them, when one is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ivl import errors
from ivl.errors import IvlError

if TYPE_CHECKING:
    from ivl.api import load
    from ivl.planning import plan
    from ivl.prompt.tiles import Grid, tile_grid

__version__ = "0.1.0"

__all__ = ["Grid", "IvlError", "__version__", "errors", "load", "plan", "tile_grid"]

_HOMES = {
    "load": "ivl.api",
    "plan": "ivl.planning",
    "tile_grid": "ivl.prompt.tiles",
    "Grid": "ivl.prompt.tiles",
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
