"""Data to measure or to calibrate with: images with what stands on them, talks, plain text.

A data set is named by paths, each of which is one of

    an image           the question is to read it; the truth is the .txt file of the same name
                       beside it, if there is one. A PDF is named itself; pages of a file with
                       several are samples of their own
    a .txt file        plain text, for the language model alone
    a .jsonl file      one object a line, {"image": ..., "question": ..., "answer": ...}. Images are
                       relative to the file; of several there is a list. Each of the three may be
                       missing: the image of a question about none, the question of an image to be
                       read, the answer that nobody knows. {"text": ...} is plain text, and
                       {"image": ..., "conversations": [{"from": "human", "value": "<image>\\n..."},
                       {"from": "gpt", "value": ...}, ...]} InternVL's own form
    a directory        its images, its .jsonl files, and those of its .txt files that belong to no
                       image, by name

A sample becomes the tokens that a model reads: the prompt, and the answer that is known. The answer
is read, not written, after the prompt: every position says what the model would have written there
(teacher forcing). What an image puts before the decoder is unlike any text: 256 vectors a tile that
come out of the projector, often with a few channels much larger than in word embeddings. What is
calibrated on text alone leaves those channels to chance (lmdeploy#2650, InternVL#876).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivl.config import ModelConfig
from ivl.documents.prompts import READ_QUESTION
from ivl.engine.prompt_builder import MaxTiles, TokenizedPrompt, build_prompt, prepare_images
from ivl.errors import CapacityError, RequestError, UnsupportedError
from ivl.model.internvl import InternVL
from ivl.pages.reader import Page, open_pages
from ivl.paths import local_path
from ivl.prompt.template import Message, get_template, user_message
from ivl.prompt.tokenizer import Tokenizer
from ivl.refused import refuse_lfs_pointer
from ivl.spelling import did_you_mean

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .webp .gif .tif .tiff .bmp .avif .heic .jp2 .ppm".split()
)
"""Files of a directory that are taken for images. A file named itself may be called anything."""

ASSETS = Path(__file__).parents[1] / "assets"
PAGES = ASSETS / "pages"
"""Pages whose truth is known, drawn by `training/`, and a text: what is measured by default."""
CALIBRATION = ASSETS / "calibration"
"""Four other pages with their text, and some prose: enough for `demo`, a beginning for others."""

Doing = Callable[[str, int, int], None]
"""Called with what is being done, how many of its steps are done, and how many there are: 0 where
nobody counts them. An empty text: what follows tells its progress in another way."""

LINE_KEYS = ("image", "question", "answer", "text", "conversations")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_IMAGE_MARK = "<image>"

TEXT_WINDOW_TOKENS = 512
"""Plain text is compared in pieces of at most so many tokens, each for itself."""
CALIBRATION_TOKENS = 2048
"""Of a sample that is calibrated with, unless another limit is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is shown to a model, and what is known to follow.

    name: for people. messages: a conversation up to the answer, with slots for the `images`; none
    for plain text, which is in `answer`. answer: the truth, or None when nobody knows it.
    """

    name: str
    messages: tuple[Message, ...] = ()
    images: tuple[Path | Page, ...] = ()
    answer: str | None = None

    @classmethod
    def asking(
        cls, name: str, question: str, *images: Path | Page, answer: str | None = None
    ) -> Sample:
        """One question, about images or about none."""
        messages = (user_message(question, len(images)),)
        return cls(name=name, messages=messages, images=images, answer=answer)

    @property
    def is_text(self) -> bool:
        return not self.messages

    def texts(self) -> Iterator[str]:
        """Everything that will be turned into tokens, to compare tokenizers with."""
        for message in self.messages:
            yield from (part for part in message.parts if isinstance(part, str))
        if self.answer:
            yield self.answer


def read_data(paths: Iterable[str | os.PathLike[str]]) -> list[Sample]:
    """The samples that the paths name, in their order.

    Headers of images are read, so that a damaged one is told before anything long begins.
    RequestError for what is not there, is no data, or is empty.
    """
    samples = [sample for path in paths for sample in _read_path(local_path(path))]
    for image in {image for sample in samples for image in sample.images}:
        if isinstance(image, Path) and len(open_pages(image)) > 1:
            raise RequestError(
                f"{image} has several pages, and one picture is wanted.",
                "Save its pages as files of their own.",
            )
    return samples


def bundled_samples(*, has_vision: bool) -> list[Sample]:
    """The bundled pages, or for a text-only model the bundled text."""
    return [sample for sample in read_data([PAGES]) if sample.is_text != has_vision]


def _read_path(path: Path) -> Sequence[Sample]:
    if path.is_dir():
        found = list(_read_directory(path))
        if not found:
            raise RequestError(
                f"{path} holds no images and no .txt or .jsonl files.", "Name a folder with some."
            )
        return found
    if not path.is_file():
        raise RequestError(
            f"There is no data {path}.", "Name an image, a .txt, a .jsonl, a folder."
        )
    if path.suffix.lower() == ".jsonl":
        return list(_read_lines(path))
    if path.suffix.lower() == ".txt":
        return [Sample(name=path.name, answer=_read_text(path))]
    pages = open_pages(path)
    if len(pages) > 1:  # of which nobody knows the truth
        return [
            Sample.asking(f"{path.name}, page {page.number}", READ_QUESTION, page) for page in pages
        ]
    truth = path.with_suffix(".txt")
    answer = _read_text(truth).rstrip("\n") if truth.is_file() else None
    return [Sample.asking(path.name, READ_QUESTION, path, answer=answer)]


def _read_directory(directory: Path) -> Iterator[Sample]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    images = {path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    truths = {path.with_suffix(".txt") for path in images}
    for path in files:
        if path in images or (path.suffix.lower() in (".txt", ".jsonl") and path not in truths):
            yield from _read_path(path)


def _read_text(path: Path) -> str:
    refuse_lfs_pointer(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    if not text.strip():
        raise RequestError(f"{path} is empty.", "Remove it, or write the text into it.")
    return text


def _read_lines(path: Path) -> Iterator[Sample]:
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{where} is not JSON: {error}.") from None
        yield _parse_line(given, where, path.parent)


def _parse_line(given: object, where: str, folder: Path) -> Sample:
    keys = f"Its keys are {', '.join(LINE_KEYS)}."
    if not isinstance(given, dict):
        raise RequestError(f"{where} is not an object.", keys)
    named = given.get("image", [])
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{where}: the image is not a path, or a list of them.")
    images = tuple(folder / name for name in names)
    for image in images:
        if not image.is_file():
            raise RequestError(f"{where} names the image {image}, which is not there.")
    if "conversations" in given:  # such lines have keys of their own: id, width, height
        return _parse_turns(given["conversations"], where, images)
    for key, value in given.items():
        if key not in LINE_KEYS:
            hint = did_you_mean(key, LINE_KEYS, keys)
            raise RequestError(f"{where} has an unknown key {key!r}.", hint)
        if key != "image" and not isinstance(value, str):
            raise RequestError(f"{where}: the {key} is not a text.", keys)
    question = given.get("question") or (READ_QUESTION if images else None)
    answer = given.get("answer", given.get("text"))
    if question is not None:
        return Sample.asking(where, question, *images, answer=answer)
    if not answer:
        raise RequestError(f"{where} has neither an image nor a question nor a text.")
    return Sample(name=where, answer=answer)


def _parse_turns(turns: Any, where: str, images: tuple[Path, ...]) -> Sample:
    """`<image>` marks where images stand; ours come first in the turn, as InternVL has them."""
    messages: list[Message] = []
    try:
        parts = [(_ROLES[turn["from"]], turn["value"]) for turn in turns if turn["from"] in _ROLES]
        for role, value in parts:
            text = value.replace(_IMAGE_MARK + "\n", "").replace(_IMAGE_MARK, "")
            if role == "user":
                messages.append(user_message(text, value.count(_IMAGE_MARK)))
            else:
                messages.append(Message("assistant", text))
    except (KeyError, TypeError, AttributeError):
        raise RequestError(
            f"{where}: the conversation cannot be read.",
            'It is a list of {"from": "human" or "gpt", "value": "..."}.',
        ) from None
    if sum(message.num_images for message in messages) != len(images):
        raise RequestError(f"{where}: there are {len(images)} images for another number of marks.")
    answer = None
    if messages and messages[-1].role == "assistant":
        answer = str(messages.pop().content)
    if not any(message.role == "user" for message in messages):
        raise RequestError(f"{where}: nobody asks anything in the conversation.")
    return Sample(name=where, messages=tuple(messages), images=images, answer=answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSample:
    """What a model is given of a sample.

    prompt_ids: the tokens before the answer, and is_image: which of them are places of image
    features. answer_ids: the truth and the token that ends it, to be read after the prompt; None
    when there is none. tiles_u8: uint8 (n, tile_px, tile_px, 3), or None.
    """

    sample: Sample
    prompt_ids: list[int]
    is_image: list[bool]
    answer_ids: list[int] | None = None
    tiles_u8: np.ndarray | None = None

    @property
    def prompt(self) -> TokenizedPrompt:
        return TokenizedPrompt(ids=self.prompt_ids, is_image=self.is_image)

    @property
    def whole(self) -> TokenizedPrompt:
        """Prompt and answer, in one."""
        answer = self.answer_ids or []
        return TokenizedPrompt(
            ids=self.prompt_ids + answer, is_image=self.is_image + [False] * len(answer)
        )

    def see(self, model: InternVL, vision_batch: int) -> Tensor | None:
        """The features of the tiles (n, tokens_per_tile, hidden), if there are any."""
        if self.tiles_u8 is None:
            return None
        return model.encode_tiles(torch.from_numpy(self.tiles_u8), vision_batch)


def embed(model: InternVL, prompt: TokenizedPrompt, features: Tensor | None) -> Tensor:
    """(1, tokens, hidden), with image features in their places."""
    ids = torch.tensor(prompt.ids, device=model.device)
    return model.embed(ids, torch.tensor(prompt.is_image, device=model.device), features)


def tokenize_samples(
    samples: Iterable[Sample],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    context: int,
    max_tiles: MaxTiles = None,
) -> Iterator[TokenizedSample]:
    """One after the other, so that the tiles of one image are held at a time.

    A text makes as many as it has windows. `context` is the most tokens of prompt and answer.
    CapacityError when they are more, UnsupportedError for an image and a model that cannot see.
    """
    for sample in samples:
        if sample.is_text:
            yield from _windows(sample, tokenizer, min(context, TEXT_WINDOW_TOKENS))
            continue
        found = _conversation(sample, config, tokenizer, max_tiles)
        if len(found.whole) >= context:
            raise CapacityError(
                f"{sample.name} needs {len(found.whole)} tokens, and the context holds {context}.",
                "Give fewer tiles (`max_tiles`), or shorter texts.",
            )
        yield found


def calibration_samples(
    samples: Iterable[Sample],
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    max_tokens: int = CALIBRATION_TOKENS,
) -> list[TokenizedSample]:
    """Samples of at most `max_tokens` tokens: long texts give several, of others the end is left
    out, never a part of an image.

    Images get as many tiles as fit in half of that. RequestError where the images alone are more,
    and for data without tokens; UnsupportedError for an image and a model that cannot see.
    """
    context = min(max_tokens, config.decoder.max_position_embeddings)
    found: list[TokenizedSample] = []
    for sample in samples:
        if sample.is_text:
            found += _windows(sample, tokenizer, context)
            continue
        limits = _tiles_within(config, context // 2, len(sample.images))
        one = _conversation(sample, config, tokenizer, limits)
        # Images come first in a turn, so that only a conversation of many can end within one.
        if any(one.is_image[context:]):
            raise RequestError(
                f"{sample.name}: the images alone have more than {context} tokens.",
                "Take fewer images in one sample.",
            )
        found.append(
            replace(
                one,
                prompt_ids=one.prompt_ids[:context],
                is_image=one.is_image[:context],
                answer_ids=(one.answer_ids or [])[: max(0, context - len(one.prompt_ids))] or None,
            )
        )
    if not found:
        raise RequestError("The calibration data holds no tokens.")
    return found


def _conversation(
    sample: Sample, config: ModelConfig, tokenizer: Tokenizer, max_tiles: MaxTiles
) -> TokenizedSample:
    if sample.images and config.vision is None:
        raise UnsupportedError(
            f"{sample.name} is an image, and this is a text-only model.",
            "Give it .txt files, or questions without images."
            + (f" {config.blind_hint}" if config.layout == "gguf" else ""),
        )
    tiles, tiles_per_image = prepare_images(sample.images, config, max_tiles)
    prompt = build_prompt(sample.messages, config, tokenizer, tiles_per_image)
    answer = None
    if sample.answer is not None:
        end = tokenizer.control(get_template(config.template).stop_control[0])
        answer = [*tokenizer.encode_text(sample.answer), end]
    return TokenizedSample(
        sample=sample,
        prompt_ids=prompt.ids,
        is_image=prompt.is_image,
        answer_ids=answer,
        tiles_u8=tiles,
    )


def _windows(sample: Sample, tokenizer: Tokenizer, window: int) -> Iterator[TokenizedSample]:
    """The first token of a window is its prompt: the beginning of text, or else the text's own."""
    assert sample.answer is not None
    ids = tokenizer.encode_text(sample.answer)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    step = max(2, window) - len(bos)
    for start in range(0, len(ids), step):
        piece = [*bos, *ids[start : start + step]]
        if len(piece) > 1:
            yield TokenizedSample(
                sample=sample, prompt_ids=piece[:1], is_image=[False], answer_ids=piece[1:]
            )


def _tiles_within(config: ModelConfig, num_tokens: int, num_images: int) -> list[int] | None:
    """One limit for each image; a thumbnail comes on top, and one tile is the least."""
    if not num_images or config.vision is None:
        return None
    each = num_tokens // num_images // config.tokens_per_tile
    if config.use_thumbnail and each > 1:
        each -= 1
    return [min(config.max_tiles, max(1, each))] * num_images
