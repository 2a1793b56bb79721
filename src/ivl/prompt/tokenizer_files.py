"""Which tokenizer a directory holds."""

from __future__ import annotations

from pathlib import Path

from ivl.config import read_optional
from ivl.errors import CheckpointError
from ivl.prompt.tokenizer import Tokenizer


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


def _is_byte_level(directory: Path) -> bool:
    decoder = read_optional(directory / "tokenizer.json").get("decoder")
    return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
