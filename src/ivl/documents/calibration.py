"""Samples to calibrate on: images with what they say, and plain text, as sequences of tokens.

a folder     its images, each with what should be read in it in a .txt file of the same name;
             .txt files without an image are plain text
FILE.txt     plain text
FILE.jsonl   a JSON object a line: {"image": path, "text": answer, "question": question}; the
             path is relative to the file, a missing question asks for all the text, and without
             an image it is plain text
an image     with the .txt file beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivl.config import ModelConfig
from ivl.documents.reading import READ_QUESTION
from ivl.engine.request import TokenizedPrompt, prepare_images, tokenize
from ivl.errors import RequestError
from ivl.prompt.template import Message, render, user_message
from ivl.prompt.tokenizer import Tokenizer

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_KEYS = {"image", "text", "question"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image with a question and its answer, or plain text (`image` is None)."""

    image: Path | None
    text: str
    question: str = READ_QUESTION


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSequence:
    """What the model reads at once. `tiles`: uint8 (n, tile_px, tile_px, 3), or None."""

    prompt: TokenizedPrompt
    tiles: np.ndarray | None


def read_samples(data: Iterable[Path]) -> list[Sample]:
    """All samples of folders and files, in order. RequestError where there is none, and for files
    of another kind."""
    samples: list[Sample] = []
    for path in data:
        if path.is_dir():
            found = list(_of_folder(path))
            if not found:
                raise RequestError(
                    f"{path} has neither images nor .txt files.",
                    "Samples are images with .txt files of the same names beside them.",
                )
            samples += found
        elif not path.is_file():
            raise RequestError(f"There is no {path}.", "Give folders, images, .txt or .jsonl.")
        elif path.suffix.lower() == ".jsonl":
            samples += _of_lines(path)
        elif path.suffix.lower() == ".txt":
            samples.append(Sample(image=None, text=_text(path)))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            samples.append(_of_image(path))
        else:
            raise RequestError(
                f"{path} is neither an image nor text.", "Give folders, images, .txt or .jsonl."
            )
    if not samples:
        raise RequestError("There are no samples.", "Give folders, images, .txt or .jsonl.")
    return samples


def sequences(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    max_tiles: int | None = None,
    chunk_tokens: int = 512,
) -> Iterator[CalibrationSequence]:
    """Each image with question and answer as one sequence; plain texts in chunks, of which the
    last may be shorter. RequestError for images that a text-only model is given."""
    template = config.template
    for sample in samples:
        if sample.image is None:
            yield from _chunks(tokenizer, sample.text, chunk_tokens)
            continue
        tiles, counts = prepare_images([sample.image], config, max_tiles)
        turns = [user_message(sample.question, 1)]
        if sample.text:
            turns.append(Message("assistant", sample.text))
        prompt = render(
            turns,
            template=template,
            tiles_per_image=counts,
            tokens_per_tile=config.tokens_per_tile,
            add_generation_prompt=not sample.text,
        )
        yield CalibrationSequence(prompt=tokenize(prompt, tokenizer), tiles=tiles)


def _chunks(tokenizer: Tokenizer, text: str, chunk_tokens: int) -> Iterator[CalibrationSequence]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids, step = tokenizer.encode_text(text), chunk_tokens - len(bos)
    for start in range(0, len(ids), step):
        chunk = [*bos, *ids[start : start + step]]
        prompt = TokenizedPrompt(ids=chunk, is_image=[False] * len(chunk))
        yield CalibrationSequence(prompt=prompt, tiles=None)


def _of_folder(folder: Path) -> Iterator[Sample]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    truths = {path.with_suffix(".txt") for path in images}
    for path in files:
        if path in images:
            yield _of_image(path)
        elif path.suffix.lower() == ".txt" and path not in truths:
            yield Sample(image=None, text=_text(path))


def _of_image(path: Path) -> Sample:
    truth = path.with_suffix(".txt")
    return Sample(image=path, text=_text(truth).strip() if truth.exists() else "")


def _of_lines(path: Path) -> Iterator[Sample]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except ValueError:
            entry = None
        if not _is_sample(entry):
            raise RequestError(
                f"{path}, line {number}, is no sample.",
                'A line is {"image": path, "text": answer, "question": question}; '
                "image and question may be missing.",
            )
        image = path.parent / entry["image"] if entry.get("image") else None
        if image is not None and not image.is_file():
            raise RequestError(f"{path}, line {number}: there is no {image}.")
        yield Sample(
            image=image,
            text=entry.get("text", ""),
            question=entry.get("question") or READ_QUESTION,
        )


def _is_sample(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        return False
    return set(entry) <= _KEYS and bool({"image", "text"} & set(entry))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not text in UTF-8.") from None
