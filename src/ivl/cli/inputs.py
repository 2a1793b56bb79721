"""From the arguments of a command line to images and a loaded model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivl.cli.options import Drafting, ModelChoice
from ivl.cli.terminal import Status
from ivl.errors import RequestError
from ivl.interrupts import interrupted_at_once
from ivl.planner.threads import choose_threads
from ivl.prompt.pixels import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from ivl.api import Model

STDIN = "-"
EXAMPLE = 'ivl ask receipt.png "What is the total?"'
_SUFFIXES = """.png .jpg .jpeg .webp .gif .tif .tiff .bmp .avif .heic .jp2 .ppm .pdf""".split()


def split_question(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Images and the question, which is the last argument.

    RequestError when it looks as if the question had been forgotten.
    """
    *images, question = arguments
    if not question.strip():
        raise RequestError("The question is empty.", f"It is the last argument: {EXAMPLE}")
    looks_like_image = " " not in question and Path(question).suffix.lower() in _SUFFIXES
    if looks_like_image or question == STDIN or _is_file(question):
        raise RequestError(
            f"The question is missing: the last argument, {question}, names a file.",
            f"Put a question behind the images, or use `ivl read {question}`: {EXAMPLE}",
        )
    return images, question


def open_images(names: Sequence[str]) -> list[Image]:
    """The images, decoded before anything large is loaded; `-` is stdin."""
    return [open_image(name) for name in names]


def open_image(name: str) -> Image:
    """An upright RGB image; RequestError, with a guess at what went wrong, when there is none."""
    if name == STDIN:
        return load_image(read_stdin())
    is_word = "/" not in name and "\\" not in name and not Path(name).suffix
    if is_word and not Path(name).exists():
        raise RequestError(
            f"there is no image {name}",
            f"Is it a word of the question? A question goes in quotation marks: {EXAMPLE}",
        )
    return load_image(name)


def read_stdin() -> bytes:
    """All of stdin; RequestError when that is a terminal, where nobody would know to type."""
    if sys.stdin.isatty():
        raise RequestError(
            "- is the image that comes through a pipe, and there is no pipe.",
            'Pipe one in: curl ... | ivl ask - "What is this?"',
        )
    return sys.stdin.buffer.read()


def load_model(choice: ModelChoice, status: Status, drafting: Drafting | None = None) -> Model:
    """The chosen model, with a bar while it is loaded."""
    choose_threads(choice.threads, "--threads")
    drafting = drafting or Drafting()
    status.show("starting")
    # Takes a second or two, and everything that can be wrong without it has been told by now.
    with interrupted_at_once():
        from ivl import api

    status.clear()  # a download draws its own bar
    try:
        model = api.load(
            choice.model,
            mmproj=choice.mmproj,
            device=choice.device,
            gpu_layers=choice.gpu_layers,
            vision_offload=choice.vision_offload,
            dtype=choice.dtype,
            context=choice.context,
            vision_batch=choice.vision_batch,
            vision=choice.vision,
            kv=choice.kv,
            threads=choice.threads,
            draft=drafting.draft,
            draft_tokens=drafting.draft_tokens,
            revision=choice.revision,
            offline=choice.offline,
            progress=status.show_loading if status.is_seen else None,
        )
    finally:
        status.clear()
    if model.engine.model.device.type == "cpu":
        status.note_missing_kernels()
    _note_places(model, status)
    return model


def _note_places(model: Model, status: Status) -> None:
    """Says when layers that found no room on a GPU run on the processor: that is slow."""
    devices = model.engine.model.devices
    if devices is None:
        return
    offloaded = sum(device.type == "cpu" for device in devices.layers)
    if offloaded:
        status.note(
            f"{offloaded} of {len(devices.layers)} layers run on the processor, for want of room "
            "on the GPU; `ivl plan` says what would fit."
        )


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False
