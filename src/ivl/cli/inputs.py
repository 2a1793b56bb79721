"""From the arguments of a command line to images and a loaded model."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ivl.cli.dropped import SUFFIXES
from ivl.cli.options import Drafting, ModelChoice
from ivl.cli.terminal import Status
from ivl.documents.inputs import Given
from ivl.documents.job import model_facts
from ivl.documents.views import open_shown
from ivl.errors import CheckpointError, RequestError
from ivl.family import find
from ivl.host import choose_threads
from ivl.interrupts import interrupted_at_once
from ivl.json_values import JsonObject
from ivl.paths import local_path, names_file

if TYPE_CHECKING:
    from ivl import Page
    from ivl.api import Model

STDIN = "-"
EXAMPLE = 'ivl ask receipt.png "What is the total?"'
QUESTION_OF_WORDS = f"Is it a word of the question? A question goes in quotation marks: {EXAMPLE}"


def split_question(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Images and the question, which is the last argument.

    RequestError when it looks as if the question had been forgotten.
    """
    *images, question = arguments
    if not question.strip():
        raise RequestError("The question is empty.", f"It is the last argument: {EXAMPLE}")
    looks_like_image = " " not in question and Path(question).suffix.lower() in SUFFIXES
    if looks_like_image or question == STDIN or names_file(question):
        files = shlex.join(f"./{n}" if n.startswith("-") and n != STDIN else n for n in arguments)
        raise RequestError(
            f"The question is missing: the last argument, {question}, names a file.",
            f"Put a question after the images, as in {EXAMPLE}, or use `ivl read {files}`.",
        )
    return images, question


def open_images(
    names: Sequence[str], max_pixels: int, *, hint: str = QUESTION_OF_WORDS
) -> list[Page]:
    """All pages of the files; `-` is stdin. Images are decoded, and pages of PDFs measured, before
    anything large is loaded. `hint`: what a word may be that names no image."""
    return [page for name in names for page in open_image(name, max_pixels, hint=hint)]


def open_image(name: str, max_pixels: int, *, hint: str) -> list[Page]:
    """The pages of an image; RequestError, with a guess at what went wrong, when there is none."""
    if _names_model(name):
        raise RequestError(
            f"{name} is a model, not an image.",
            f"Name a model with --model {shlex.quote(name)}.",
        )
    is_word = "/" not in name and "\\" not in name and not Path(name).suffix
    if name != STDIN and is_word and not local_path(name).exists():
        raise RequestError(f"There is no image {name}.", hint)
    return open_shown(read_stdin() if name == STDIN else name, name, max_pixels=max_pixels)


def _names_model(name: str) -> bool:
    """Whether it is a model's name, and not that of a file beside it which only sounds so."""
    path = local_path(name)
    try:
        is_here = path.exists()
        is_files = path.suffix.lower() == ".gguf" or (path / "config.json").is_file()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False
    return is_files if is_here else name == "demo" or find(name) is not None


def read_stdin() -> bytes:
    """All of stdin; RequestError when that is a terminal, where nobody would know to type."""
    if sys.stdin.isatty():
        raise RequestError(
            "- reads an image from a pipe, and there is no pipe.",
            'Pipe one in: curl ... | ivl ask - "What is this?"',
        )
    return sys.stdin.buffer.read()


def given_documents(names: Sequence[str]) -> list[Given]:
    """What a command line names, with stdin in the place of `-`."""
    if list(names).count(STDIN) > 1:
        raise RequestError("- was given twice.", "Stdin can be read once.")
    return [(name, read_stdin()) if name == STDIN else name for name in names]


def read_passwords(name: str | None) -> list[str]:
    """The lines of a file; RequestError when it cannot be read. None: none."""
    if name is None:
        return []
    try:
        text = local_path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"The passwords in {name} cannot be read: {error.strerror}.", "Check the spelling."
        ) from None
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not a text file.", "Write a password a line.") from None
    return [line for line in text.splitlines() if line]


def load_model(choice: ModelChoice, status: Status, drafting: Drafting | None = None) -> Model:
    """The chosen model, with a bar while it is loaded."""
    choose_threads(choice.threads, "--threads")
    status.show("starting")
    # Takes a second or two, and everything that can be wrong without it has been told by now.
    with interrupted_at_once():
        from ivl import api

    status.clear()  # a download draws its own bar
    try:
        model = api.load(
            **asdict(choice),
            **asdict(drafting or Drafting()),
            progress=status.show_loading if status.is_seen else None,
        )
    except CheckpointError as error:
        if choice.model == os.environ.get("IVL_MODEL"):
            error.hint = f"$IVL_MODEL names it. {error.hint}"
        raise
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
            f"{offloaded} of {len(devices.layers)} layers run on the processor, because the GPU "
            "has no room for them; `ivl plan` says what would fit."
        )


def facts_of_choice(choice: ModelChoice, status: Status) -> JsonObject:
    """What of a model decides about its answers; see `model_facts`."""
    return model_facts(
        choice.model,
        mmproj=choice.mmproj,
        revision=choice.revision,
        offline=choice.offline,
        show_progress=status.is_seen,
        dtype=choice.dtype,
        kv=choice.kv,
        vision=choice.vision,
        context=choice.context,
    )
