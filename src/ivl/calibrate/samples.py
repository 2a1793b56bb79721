"""Calibration data: pages with their text, conversations about images, and plain text.

    a folder       its images, each with the text file of the same name; its other .txt and .jsonl
    an image       with the text file of the same name beside it, if there is one; a file of several
                   pages, such as a PDF, is as many samples without text. PDFs are named themselves
    a .txt file    plain text
    a .jsonl file  one JSON object a line, in InternVL's own form
                   {"image": PATH, "conversations": [{"from": "human", "value": "<image>\\n..."},
                   {"from": "gpt", "value": ...}, ...]}, or shorter,
                   {"image": PATH, "question": ..., "answer": ...}, or {"text": ...}

Paths of images in a .jsonl file are relative to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl.documents.reading import READ_QUESTION
from ivl.errors import RequestError
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.pages.reader import Page, open_pages
from ivl.prompt.template import Message, user_message

DEFAULT_DATA = Path(__file__).parents[1] / "assets" / "calibration"
"""Four pages with their text, and some prose: enough for `demo`, a beginning for others."""

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A conversation (`messages`, images in their slots), or plain `text` without a template."""

    name: str
    messages: tuple[Message, ...] = ()
    images: tuple[Path | Page, ...] = ()
    text: str = ""


def read_samples(paths: Sequence[Path]) -> list[Sample]:
    """All samples of files and folders, in the order of their names.

    Raises RequestError for what is not there, cannot be read, or holds no sample at all.
    """
    samples = [sample for path in paths for sample in _read(path)]
    if not samples:
        named = ", ".join(map(str, paths))
        raise RequestError(
            f"There is nothing to calibrate on in {named}.",
            "Give a folder of images with text files of the same names, .txt or .jsonl files.",
        )
    return samples


def _read(path: Path) -> Iterator[Sample]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        images = [file for file in files if file.suffix.lower() in IMAGE_ENDINGS]
        stems = {image.stem for image in images}
        for file in files:
            if file in images or (
                file.suffix in (".txt", ".jsonl")
                and not (file.suffix == ".txt" and file.stem in stems)
            ):
                yield from _read(file)
    elif not path.is_file():
        raise RequestError(f"There is no calibration data {path}.")
    elif path.suffix.lower() in (*IMAGE_ENDINGS, ".pdf"):
        pages = open_pages(path)
        if len(pages) > 1:
            for page in pages:
                yield _about(f"{path.name}, page {page.number}", (page,), READ_QUESTION, "")
            return
        truth = path.with_suffix(".txt")
        answer = _text(truth).strip() if truth.is_file() else ""
        yield _about(path.name, (path,), READ_QUESTION, answer)
    elif path.suffix == ".jsonl":
        yield from _lines(path)
    elif path.suffix == ".txt":
        yield Sample(name=path.name, text=_text(path))
    else:
        raise RequestError(
            f"{path} is no calibration data that ivl knows.",
            f"Known: folders, .txt, .jsonl, .pdf, {', '.join(IMAGE_ENDINGS)}.",
        )


def _text(path: Path) -> str:
    refuse_lfs_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as text: {error}.") from None


def _about(name: str, images: tuple[Path | Page, ...], question: str, answer: str) -> Sample:
    messages = [user_message(question, len(images))]
    if answer:
        messages.append(Message("assistant", answer))
    return Sample(name=name, messages=tuple(messages), images=images)


def _lines(path: Path) -> Iterator[Sample]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name = f"{path.name}:{number}"
        try:
            record = json.loads(line)
            yield _record(record, name, path.parent)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError(
                f"{path}, line {number}, is no sample.",
                'A line is {"image": PATH, "conversations": [...]}, '
                '{"image": PATH, "question": ..., "answer": ...} or {"text": ...}.',
            ) from None


def _record(record: dict[str, Any], name: str, folder: Path) -> Sample:
    named = record.get("image", [])
    images = tuple(folder / image for image in ([named] if isinstance(named, str) else named))
    for image in images:
        if not image.is_file():
            raise RequestError(f"{name}: there is no image {image}.")
    if "conversations" in record:
        turns = record["conversations"]
        parts = [(_ROLES[turn["from"]], turn["value"]) for turn in turns if turn["from"] in _ROLES]
        return _conversation(name, parts, images)
    if "text" in record and not images:
        return Sample(name=name, text=str(record["text"]))
    answer = record.get("answer", record.get("text", ""))
    return _about(name, images, record.get("question", READ_QUESTION), answer)


def _conversation(name: str, turns: list[tuple[str, str]], images: tuple[Path, ...]) -> Sample:
    """`<image>` marks where images stand; ours come first in the turn, as InternVL has them."""
    messages: list[Message] = []
    for role, value in turns:
        text = value.replace(_IMAGE_MARK + "\n", "").replace(_IMAGE_MARK, "")
        if role == "user":
            messages.append(user_message(text, value.count(_IMAGE_MARK)))
        else:
            messages.append(Message("assistant", text))
    if sum(message.num_images for message in messages) != len(images):
        raise RequestError(f"{name}: there are {len(images)} images for another number of marks.")
    return Sample(name=name, messages=tuple(messages), images=images)
