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
    from ivl.api import Model, load
    from ivl.conversion import Conversion, WrittenFile, convert, quantize
    from ivl.engine.answer import Answer, Timings
    from ivl.engine.conversation import Conversation, Generation
    from ivl.engine.engine import EngineLimits
    from ivl.engine.options import GenerationKeywords, GenerationOptions
    from ivl.engine.prompt_builder import Images, MaxTiles
    from ivl.loading import LoadOptions
    from ivl.measure.awq import WrittenAwq, quantize_awq
    from ivl.measure.check import Check, FidelityCheck, check, check_against
    from ivl.measure.importance import WrittenImatrix, imatrix
    from ivl.measure.record import WrittenReference, record_reference
    from ivl.measure.speed import MeasuredSpeed, bench
    from ivl.pages.reader import ImageSource, Page, load_image, load_pages, open_pages
    from ivl.planner.planning import Report, plan
    from ivl.prompt.template import IMAGE, ImageSlot, Message
    from ivl.prompt.tiles import Grid, tile_grid
    from ivl.server.settings import ServerSettings
    from ivl.serving import serve

__version__ = "0.1.0"

__all__ = [
    "IMAGE",
    "Answer",
    "Check",
    "Conversation",
    "Conversion",
    "EngineLimits",
    "FidelityCheck",
    "Generation",
    "GenerationKeywords",
    "GenerationOptions",
    "Grid",
    "ImageSlot",
    "ImageSource",
    "Images",
    "IvlError",
    "LoadOptions",
    "MaxTiles",
    "MeasuredSpeed",
    "Message",
    "Model",
    "Page",
    "Report",
    "ServerSettings",
    "Timings",
    "WrittenAwq",
    "WrittenFile",
    "WrittenImatrix",
    "WrittenReference",
    "__version__",
    "bench",
    "check",
    "check_against",
    "convert",
    "errors",
    "imatrix",
    "load",
    "load_image",
    "load_pages",
    "open_pages",
    "plan",
    "quantize",
    "quantize_awq",
    "record_reference",
    "serve",
    "tile_grid",
]

_HOMES = {
    "load": "ivl.api",
    "Model": "ivl.api",
    "Answer": "ivl.engine.answer",
    "Timings": "ivl.engine.answer",
    "Conversation": "ivl.engine.conversation",
    "Generation": "ivl.engine.conversation",
    "EngineLimits": "ivl.engine.engine",
    "GenerationKeywords": "ivl.engine.options",
    "GenerationOptions": "ivl.engine.options",
    "Images": "ivl.engine.prompt_builder",
    "MaxTiles": "ivl.engine.prompt_builder",
    "plan": "ivl.planner.planning",
    "Report": "ivl.planner.planning",
    "Conversion": "ivl.conversion",
    "WrittenFile": "ivl.conversion",
    "convert": "ivl.conversion",
    "quantize": "ivl.conversion",
    "LoadOptions": "ivl.loading",
    "WrittenAwq": "ivl.measure.awq",
    "quantize_awq": "ivl.measure.awq",
    "Check": "ivl.measure.check",
    "FidelityCheck": "ivl.measure.check",
    "check": "ivl.measure.check",
    "check_against": "ivl.measure.check",
    "WrittenImatrix": "ivl.measure.importance",
    "imatrix": "ivl.measure.importance",
    "WrittenReference": "ivl.measure.record",
    "record_reference": "ivl.measure.record",
    "MeasuredSpeed": "ivl.measure.speed",
    "bench": "ivl.measure.speed",
    "ImageSource": "ivl.pages.reader",
    "Page": "ivl.pages.reader",
    "load_image": "ivl.pages.reader",
    "load_pages": "ivl.pages.reader",
    "open_pages": "ivl.pages.reader",
    "IMAGE": "ivl.prompt.template",
    "ImageSlot": "ivl.prompt.template",
    "Message": "ivl.prompt.template",
    "Grid": "ivl.prompt.tiles",
    "tile_grid": "ivl.prompt.tiles",
    "ServerSettings": "ivl.server.settings",
    "serve": "ivl.serving",
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
