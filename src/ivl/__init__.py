"""ivl runs the InternVL 2.5 vision-language models.

    model = ivl.load("demo")
    print(model.ask("receipt.png", "What is the total?").text)

`import ivl` is cheap: torch, numpy and Pillow are loaded by the names that need them, when one is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ivl import errors
from ivl.errors import IvlError

if TYPE_CHECKING:
    from ivl.api import Model, load
    from ivl.conversion import Conversion, WrittenFile, convert, quantize
    from ivl.documents.asynchronous import extract_async, read_async, read_documents_async
    from ivl.documents.extraction import ExtractResult
    from ivl.documents.extraction_job import extract
    from ivl.documents.field_values import FieldValue
    from ivl.documents.job import read_documents
    from ivl.documents.looking import ReadKeywords
    from ivl.documents.progress import ReadProgress
    from ivl.documents.reading import read
    from ivl.documents.results import DocumentResult, PageResult
    from ivl.documents.views import PageView
    from ivl.engine.answer import Answer, Timings
    from ivl.engine.conversation import Conversation, Generation
    from ivl.engine.engine import EngineLimits
    from ivl.engine.options import GenerationKeywords, GenerationOptions
    from ivl.engine.prompt_builder import Images, MaxTiles
    from ivl.facts import MachineFacts, ModelFacts, family_info, info, machine_info
    from ivl.loading import LoadOptions
    from ivl.measure.awq import WrittenAwq, quantize_awq
    from ivl.measure.check import Check, FidelityCheck, check, check_against
    from ivl.measure.importance import WrittenImatrix, imatrix
    from ivl.measure.reference import WrittenReference, record_reference
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
    "DocumentResult",
    "EngineLimits",
    "ExtractResult",
    "FidelityCheck",
    "FieldValue",
    "Generation",
    "GenerationKeywords",
    "GenerationOptions",
    "Grid",
    "ImageSlot",
    "ImageSource",
    "Images",
    "IvlError",
    "LoadOptions",
    "MachineFacts",
    "MaxTiles",
    "MeasuredSpeed",
    "Message",
    "Model",
    "ModelFacts",
    "Page",
    "PageResult",
    "PageView",
    "ReadKeywords",
    "ReadProgress",
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
    "extract",
    "extract_async",
    "family_info",
    "imatrix",
    "info",
    "load",
    "load_image",
    "load_pages",
    "machine_info",
    "open_pages",
    "plan",
    "quantize",
    "quantize_awq",
    "read",
    "read_async",
    "read_documents",
    "read_documents_async",
    "record_reference",
    "serve",
    "tile_grid",
]

_NAMES = {
    "ivl.api": ("Model", "load"),
    "ivl.conversion": ("Conversion", "WrittenFile", "convert", "quantize"),
    "ivl.documents.asynchronous": ("extract_async", "read_async", "read_documents_async"),
    "ivl.documents.extraction": ("ExtractResult",),
    "ivl.documents.extraction_job": ("extract",),
    "ivl.documents.field_values": ("FieldValue",),
    "ivl.documents.job": ("read_documents",),
    "ivl.documents.looking": ("ReadKeywords",),
    "ivl.documents.progress": ("ReadProgress",),
    "ivl.documents.reading": ("read",),
    "ivl.documents.results": ("DocumentResult", "PageResult"),
    "ivl.documents.views": ("PageView",),
    "ivl.engine.answer": ("Answer", "Timings"),
    "ivl.engine.conversation": ("Conversation", "Generation"),
    "ivl.engine.engine": ("EngineLimits",),
    "ivl.engine.options": ("GenerationKeywords", "GenerationOptions"),
    "ivl.engine.prompt_builder": ("Images", "MaxTiles"),
    "ivl.facts": ("MachineFacts", "ModelFacts", "family_info", "info", "machine_info"),
    "ivl.loading": ("LoadOptions",),
    "ivl.measure.awq": ("WrittenAwq", "quantize_awq"),
    "ivl.measure.check": ("Check", "FidelityCheck", "check", "check_against"),
    "ivl.measure.importance": ("WrittenImatrix", "imatrix"),
    "ivl.measure.reference": ("WrittenReference", "record_reference"),
    "ivl.measure.speed": ("MeasuredSpeed", "bench"),
    "ivl.pages.reader": ("ImageSource", "Page", "load_image", "load_pages", "open_pages"),
    "ivl.planner.planning": ("Report", "plan"),
    "ivl.prompt.template": ("IMAGE", "ImageSlot", "Message"),
    "ivl.prompt.tiles": ("Grid", "tile_grid"),
    "ivl.server.settings": ("ServerSettings",),
    "ivl.serving": ("serve",),
}
"""Module -> the public names that it is the home of."""
_HOMES = {name: home for home, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the home of a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
