"""The demo's tokenizer: bytes as tokens, in the file format of Qwen2's.

Letters stay single tokens, because a model this small reads best letter by letter. Only the
template's fixed system message, which every prompt repeats, is merged into a few tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# The pre-tokenization pattern that Qwen2's published tokenizer.json contains.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>",
)  # fmt: skip


def build_tokenizer(fixed_text: str) -> Tokenizer:
    """A byte-level BPE whose only merges are those of the non-ASCII runs of `fixed_text`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges = _merges(fixed_text)
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json and the tokenizer_config.json that other programs look for."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def _merges(text: str) -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of every piece of `text` with non-ASCII letters.

    A pair is merged only if its left part holds a byte beyond ASCII, so that no pair of plain
    letters ever becomes a token.
    """
    pieces = [list(piece) for piece, _ in _pre_tokenizer().pre_tokenize_str(text)]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(
            pair for piece in pieces for pair in pairwise(piece)
            if any(not "!" <= symbol <= "~" for symbol in pair[0])
        )  # fmt: skip
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces = [_apply(piece, best) for piece in pieces]


def _apply(piece: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in piece:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out
