"""The parts of a vocabulary for a GGUF file: tokens with their types and scores, merges, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivl.errors import UnsupportedError
from ivl.prompt.added_tokens import TokenizerMetadata, read_json
from ivl.prompt.bpe_parts import QWEN2_SPLIT

NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
}
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0
_SPACE = "\u0120"
"""What stands for a space in byte-level text."""


class Vocabulary:
    """A token for each of `size` ids; `[PADn]`, never used, until it is put."""

    def __init__(self, size: int) -> None:
        self.texts = [f"[PAD{number}]" for number in range(size)]
        self._kinds = [UNUSED] * size
        self._scores = [_PAD_SCORE] * size

    def put(self, token_id: int, text: str, kind: int = NORMAL, score: float = 0.0) -> None:
        self.texts[token_id], self._kinds[token_id] = text, kind
        self._scores[token_id] = score

    def mark_unknown(self, token_id: int) -> None:
        self._kinds[token_id] = UNKNOWN

    def put_added(self, added: TokenizerMetadata, *, without: str | None = None) -> None:
        """All added tokens but the one for unknown text, which is a piece like others."""
        for name, token_id in added.added.items():
            if name == without:
                continue
            looks_special = name.startswith("<|") and name.endswith("|>")
            special = looks_special or name in added.special_names
            self.put(token_id, name, CONTROL if special else ADDED, _ADDED_SCORE)

    def kinds(self) -> npt.NDArray[np.int32]:
        return np.array(self._kinds, np.int32)

    def scores(self) -> npt.NDArray[np.float32]:
        return np.array(self._scores, np.float32)


def sentencepiece_tokens(model: bytes, vocab_size: int) -> tuple[Vocabulary, str]:
    """The pieces of a SentencePiece model, and the text of its piece for unknown text.

    Pieces `[UNUSED_TOKEN_n]` of InternLM2 are unused, as llama.cpp has them.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    tokens = Vocabulary(vocab_size)
    for piece_id in range(processor.get_piece_size()):
        text, kind = processor.id_to_piece(piece_id), NORMAL
        if processor.is_unknown(piece_id):
            kind = UNKNOWN
        elif processor.is_control(piece_id):
            kind = CONTROL
        elif processor.is_byte(piece_id):
            kind = BYTE
        elif processor.is_unused(piece_id) or text.startswith("[UNUSED"):
            kind = UNUSED
        if text == "\x00":
            # llama.cpp takes text up to the first zero byte. The byte token says the same.
            text, kind = "[UNUSED_NUL]", UNUSED
        tokens.put(piece_id, text, kind, processor.get_score(piece_id))
    return tokens, processor.id_to_piece(processor.unk_id())


def scores_of_merges(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """SentencePiece's score of each piece, higher merging first, from ranked merges."""
    scores = dict.fromkeys(vocab, 0.0)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    # Consecutive numbers: float32 holds them exactly.
    for number, piece in enumerate(sorted(ranks, key=ranks.__getitem__)):
        scores[piece] = -float(number + 1)
    return scores


def spell_merge(left: str, right: str) -> str:
    """Two pieces with a space between them; a space of their own is written as byte-level text."""
    return f"{left.replace(' ', _SPACE)} {right.replace(' ', _SPACE)}"


def cut_name(sections: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a byte-level `tokenizer.json` cuts text.

    No sections: Qwen2's. UnsupportedError for a way that it, or ivl, has no name for.
    """
    if not sections:
        return "qwen2"
    cut = sections.get("pre_tokenizer") or {}
    parts = cut.get("pretokenizers") or [cut]
    kinds = [part.get("type") for part in parts]
    last = parts[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if kinds == ["Split", "ByteLevel"] and plain and not last.get("use_regex", True):
        split = parts[0]
        regex = (split.get("pattern") or {}).get("Regex")
        if regex == QWEN2_SPLIT and split.get("behavior") == "Isolated":
            return "qwen2"
    digits = parts[0].get("individual_digits", False)
    if kinds == ["Digits", "ByteLevel"] and plain and digits and last.get("use_regex", True):
        return "smollm"
    raise UnsupportedError(
        f"tokenizer.json cuts text in a way ({' + '.join(map(str, kinds))}) that has no name in "
        "GGUF files that ivl knows.",
        "ivl writes Qwen2's way and SmolLM's.",
    )


def role_ids(
    directory: Path, added: TokenizerMetadata, controls: Mapping[str, int]
) -> dict[str, int]:
    """Ids of the tokens that the metadata give a role, by their names in GGUF."""
    names: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / file
        names |= {k: v for k, v in (read_json(path) if path.exists() else {}).items() if v}
    found: dict[str, int] = {}
    for role, key in _ROLES.items():
        name = names.get(role)
        name = name.get("content") if isinstance(name, dict) else name
        token_id = added.added.get(name, controls.get(name)) if isinstance(name, str) else None
        if token_id is not None:
            found[key] = token_id
    return found
