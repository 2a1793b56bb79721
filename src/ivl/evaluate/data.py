"""Data to measure or to calibrate with: images with what stands on them, questions, plain text.

A data set is named by paths, each of which is one of

    an image           the question is to read it; the truth is the .txt file of the same name
                       beside it, if there is one. A PDF is named itself; pages of a file
                       with several are samples of their own
    a .txt file        plain text, for the language model alone
    a .jsonl file      one {"image": ..., "question": ..., "answer": ...} a line. Images are
                       relative to the file. Each of the three may be missing: the image of a
                       question about none, the question of an image to be read, the answer that
                       nobody knows
    a directory        its images and those of its .txt files that belong to none, by name
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivl.errors import RequestError
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.pages.reader import Page, open_pages
from ivl.paths import local_path
from ivl.spelling import did_you_mean

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .webp .gif .tif .tiff .bmp .avif .heic .jp2 .ppm".split()
)
"""Files of a directory that are taken for images. A file named itself may be called anything."""

BUNDLED = Path(__file__).parents[1] / "assets" / "pages"
"""Pages whose truth is known, drawn by `training/`, and a text: what is measured by default."""

LINE_KEYS = ("image", "question", "answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A question with what is known about it, or plain text.

    name: for people. image: its file, a page of one, or None. question: None is plain text, which
    is in `answer`.
    answer: the truth, or None when nobody knows it.
    """

    name: str
    image: Path | Page | None = None
    question: str | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """What a model is given of a sample.

    prompt_ids: the tokens before the answer, and is_image: which of them are places of image
    features. answer_ids: the truth and the token that ends it, to be read after the prompt
    (teacher forcing); None when there is none. tiles_u8: uint8 (n, tile_px, tile_px, 3), or None.
    """

    sample: Sample
    prompt_ids: list[int]
    is_image: list[bool]
    answer_ids: list[int] | None = None
    tiles_u8: np.ndarray | None = None


def read_data(paths: Iterable[str | Path], *, read_question: str) -> list[Sample]:
    """The samples that the paths name, in their order; `read_question` asks for an image's text.

    Headers of images are read, so that a damaged one is told before anything long begins.
    RequestError for what is not there, is no data, or is empty.
    """
    samples = [sample for path in paths for sample in _read_path(local_path(path), read_question)]
    for sample in samples:
        if isinstance(sample.image, Path) and len(open_pages(sample.image)) > 1:
            raise RequestError(
                f"{sample.image} has several pages, and one picture is wanted.",
                "Save its pages as files of their own.",
            )
    return samples


def bundled_samples(*, has_vision: bool, read_question: str) -> list[Sample]:
    """The bundled pages, or for a text-only model the bundled text."""
    samples = read_data([BUNDLED], read_question=read_question)
    return [sample for sample in samples if (sample.image is not None) == has_vision]


def _read_path(path: Path, read_question: str) -> list[Sample]:
    if path.is_dir():
        found = list(_read_directory(path, read_question))
        if not found:
            raise RequestError(
                f"{path} holds no images and no .txt files.",
                "A .jsonl file is named itself, not its directory.",
            )
        return found
    if not path.is_file():
        raise RequestError(
            f"There is no data {path}.", "Name an image, a .txt, a .jsonl, a folder."
        )
    if path.suffix.lower() == ".jsonl":
        return list(_read_lines(path, read_question))
    if path.suffix.lower() == ".txt":
        return [Sample(name=str(path), answer=_read_text(path))]
    return _pages(path, read_question)


def _read_directory(directory: Path, read_question: str) -> Iterator[Sample]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    truths = {path.with_suffix(".txt") for path in images}
    for image in images:
        yield from _pages(image, read_question)
    for path in files:
        if path.suffix.lower() == ".txt" and path not in truths:
            yield Sample(name=path.name, answer=_read_text(path))


def _pages(image: Path, read_question: str) -> list[Sample]:
    """A file of one page with its truth; of several each, of which nobody knows the truth."""
    pages = open_pages(image)
    if len(pages) > 1:
        return [
            Sample(name=f"{image.name}, page {page.number}", image=page, question=read_question)
            for page in pages
        ]
    truth = image.with_suffix(".txt")
    answer = _read_text(truth).rstrip("\n") if truth.is_file() and truth != image else None
    return [Sample(name=image.name, image=image, question=read_question, answer=answer)]


def _read_text(path: Path) -> str:
    refuse_lfs_pointer(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    if not text.strip():
        raise RequestError(f"{path} is empty.", "Remove it, or write the text into it.")
    return text


def _read_lines(path: Path, read_question: str) -> Iterator[Sample]:
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{where} is no JSON: {error}.") from None
        yield _parse_line(given, where, path.parent, read_question)


def _parse_line(given: Any, where: str, folder: Path, read_question: str) -> Sample:
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise RequestError(
            f"{where} is not an object of texts.", f"Its keys are {', '.join(LINE_KEYS)}."
        )
    for key in given:
        if key not in LINE_KEYS:
            hint = did_you_mean(key, LINE_KEYS, f"Its keys are {', '.join(LINE_KEYS)}.")
            raise RequestError(f"{where} has a key {key!r}, which means nothing here.", hint)
    image = folder / given["image"] if "image" in given else None
    if image is not None and not image.is_file():
        raise RequestError(f"{where} names the image {image}, which is not there.")
    question = given.get("question") or (read_question if image is not None else None)
    answer = given.get("answer")
    if question is None and not answer:
        raise RequestError(f"{where} has neither an image nor a question nor a text.")
    return Sample(name=where, image=image, question=question, answer=answer)


def texts(samples: Sequence[Sample]) -> list[str]:
    """Everything that will be turned into tokens, to compare tokenizers with."""
    return [text for s in samples for text in (s.question, s.answer) if text]
