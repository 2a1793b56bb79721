"""Loading the tokenizer of a checkpoint, whichever of the family's it is.

Which one it is follows from the files and their contents:

- `tokenizer.model`: SentencePiece (the InternLM2 sizes), unless a byte-level `tokenizer.json`
  stands beside it;
- `tokenizer.json`, or `vocab.json` with `merges.txt`: byte pair encoding (the Qwen2 sizes).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ivl.errors import CheckpointError, UnsupportedError
from ivl.prompt.added_tokens import read_json
from ivl.prompt.tokenizer_base import LeadingSpace, StreamDecoder, Tokenizer

__all__ = [
    "ImageTokenIds",
    "LeadingSpace",
    "StreamDecoder",
    "Tokenizer",
    "load_tokenizer",
    "require_image_tokens",
]


class ImageTokenIds(NamedTuple):
    """The ids around and in place of the features of a tile."""

    start: int
    """`<img>`"""
    end: int
    """`</img>`"""
    context: int
    """`<IMG_CONTEXT>`, one for every image token."""


_IMAGE_NAMES = ("<img>", "</img>", "<IMG_CONTEXT>")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer in `directory`.

    CheckpointError when files are missing, damaged or contradict each other, UnsupportedError for
    a tokenizer of another kind. Nothing of the directory is executed.
    """
    # The libraries take a tenth of a second each to import, and only one of them is needed.
    if (directory / "tokenizer.model").exists() and not _is_byte_level(directory):
        from ivl.prompt.sentencepiece_tokenizer import load_sentencepiece

        return load_sentencepiece(directory)
    if (directory / "tokenizer.json").exists() or (directory / "vocab.json").exists():
        from ivl.prompt.bpe import load_bpe

        return load_bpe(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory.")
    raise CheckpointError(
        f"{directory} holds no tokenizer.",
        "It needs tokenizer.json, or vocab.json and merges.txt, or tokenizer.model, from the "
        "repository that the weights are from.",
    )


def require_image_tokens(tokenizer: Tokenizer) -> ImageTokenIds:
    """The ids of the image tokens; UnsupportedError for a tokenizer of a text-only model."""
    missing = [name for name in _IMAGE_NAMES if not tokenizer.has_control(name)]
    if missing:
        raise UnsupportedError(
            f"The model's tokenizer has no {', '.join(missing)}, so it cannot take images.",
            "Either this is a text-only model, or its tokenizer files are those of the language "
            "model alone: fetch them from the InternVL repository.",
        )
    return ImageTokenIds(*(tokenizer.control(name) for name in _IMAGE_NAMES))


def _is_byte_level(directory: Path) -> bool:
    path = directory / "tokenizer.json"
    decoder = read_json(path).get("decoder") if path.exists() else None
    return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
