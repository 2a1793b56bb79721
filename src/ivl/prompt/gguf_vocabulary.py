"""A directory's tokenizer as the metadata of a GGUF file: what `gguf_tokenizer` reads.

Types of tokens are llama.cpp's: names such as `<|fim_prefix|>` count as special whether the
original does or not. Ids that no token has become `[PADn]`. What is about to be written is read
back and compared on text of many kinds, so a tokenizer that GGUF cannot express is an error here,
and not a model that reads wrongly later.

Source: get_vocab_base and _create_vocab_sentencepiece in conversion/base.py, conversion/internlm.py
and gguf-py/gguf/vocab.py of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivl.errors import CheckpointError, UnsupportedError
from ivl.prompt.added_tokens import TokenizerMetadata, read_json, read_metadata
from ivl.prompt.bpe_parts import alphabet_of
from ivl.prompt.gguf_tokenizer import load_gguf_tokenizer
from ivl.prompt.gguf_vocabulary_parts import (
    BYTE,
    Vocabulary,
    cut_name,
    role_ids,
    scores_of_merges,
    sentencepiece_tokens,
    spell_merge,
)
from ivl.prompt.tokenizer import Tokenizer, load_tokenizer

_PROBES = (
    "What is the total? It's 12:30; I'LL pay $1,234.56 (incl. 19% VAT) \u2014 4\u00d72\u00bd\u2026",
    "  line\r\nline\n\n\n  \n\ttab\t\t end \u00a0nbsp\u3000ideographic",
    "def f(x):\n    return {k: v for k, v in x.items() if k != '__init__'}  # ok\n",
    "\u8bf7\u8be6\u7ec6\u63cf\u8ff0\u8fd9\u5f20\u56fe\u7247\u3002\u66f8\u751f \u6771\u4eac "
    "\ud55c\uad6d\uc5b4 \u0627\u0644\u0639 \u05e2\u05d1 \u0e44\u0e17\u0e22 e\u0301 \u00e9",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f 00120 3333",
    "<|im_end|>\n<|im_start|>system <IMG_CONTEXT><img></img> <0x41> \u2581 \u2581\u2581",
)


def tokenizer_metadata(directory: Path, vocab_size: int) -> dict[str, Any]:
    """The `tokenizer.ggml.*` entries for the tokenizer in `directory`; `vocab_size` rows of
    embeddings get a token each.

    CheckpointError for damaged files and for more tokens than rows, UnsupportedError for a
    tokenizer that GGUF, or ivl, has no name for.
    """
    original = load_tokenizer(directory)
    if original.vocab_size > vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {original.vocab_size} tokens, the model has "
            f"embeddings for {vocab_size}.",
            "The tokenizer is that of another model.",
        )
    path = directory / "tokenizer.json"
    sections = read_json(path) if path.exists() else {}
    added = read_metadata(directory, sections)
    byte_level = not sections or alphabet_of(sections.get("decoder"))[0] == "byte_level"
    if (directory / "tokenizer.model").exists() and not (sections and byte_level):
        found = _sentencepiece(directory, added, vocab_size)
    elif byte_level:
        found = _byte_level(directory, sections, added, vocab_size)
    else:
        found = _byte_fallback(directory, sections, added, vocab_size)
    found |= _ends(directory, added, original)
    named = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    _check_same(original, named, directory)
    return named


def _byte_level(
    directory: Path, sections: Mapping[str, Any], added: TokenizerMetadata, vocab_size: int
) -> dict[str, Any]:
    """Qwen2's kind; without a `tokenizer.json`, from `vocab.json` and `merges.txt`."""
    from ivl.prompt.bpe import read_bpe

    vocab, merges = read_bpe(directory, sections)
    tokens = Vocabulary(vocab_size)
    for text, token_id in vocab.items():
        tokens.put(token_id, text)
    tokens.put_added(added)
    return {
        "model": "gpt2",
        "pre": cut_name(sections),
        "tokens": tokens.texts,
        "token_type": tokens.kinds(),
        "merges": [spell_merge(left, right) for left, right in merges],
    }


def _byte_fallback(
    directory: Path, sections: Mapping[str, Any], added: TokenizerMetadata, vocab_size: int
) -> dict[str, Any]:
    """A SentencePiece model that was rewritten as a `tokenizer.json`."""
    from ivl.prompt.bpe import read_bpe

    vocab, merges = read_bpe(directory, sections)
    unk = (sections.get("model") or {}).get("unk_token")
    scores = scores_of_merges(vocab, merges)
    tokens = Vocabulary(vocab_size)
    for text, token_id in vocab.items():
        tokens.put(token_id, text, score=scores[text])
        if text == unk:
            tokens.mark_unknown(token_id)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            tokens.put(token_id, text, BYTE, 0.0)
    tokens.put_added(added, without=unk)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens.texts,
        "scores": tokens.scores(),
        "token_type": tokens.kinds(),
        "add_space_prefix": _puts_space_in_front(sections),
    }


def _sentencepiece(directory: Path, added: TokenizerMetadata, vocab_size: int) -> dict[str, Any]:
    from ivl.prompt.sentencepiece_file import read_space_rules

    model = (directory / "tokenizer.model").read_bytes()
    tokens, unk = sentencepiece_tokens(model, vocab_size)
    tokens.put_added(added, without=unk)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens.texts,
        "scores": tokens.scores(),
        "token_type": tokens.kinds(),
        "add_space_prefix": read_space_rules(model).add_dummy_prefix,
    }


def _puts_space_in_front(sections: Mapping[str, Any]) -> bool:
    """Whether text gets a space mark before it: by the normaliser, or by the cutting."""
    text = repr((sections.get("normalizer"), sections.get("pre_tokenizer")))
    return (
        "'Prepend'" in text
        or "'prepend_scheme': 'always'" in text
        or ("'prepend_scheme': 'first'" in text)
    )


def _ends(directory: Path, added: TokenizerMetadata, original: Tokenizer) -> dict[str, Any]:
    """The ids of bos, eos and their like, and whether bos starts a prompt."""
    found: dict[str, Any] = role_ids(directory, added, original.controls)
    if original.bos_id is not None:
        found["bos_token_id"] = original.bos_id
    # A chat ends at the end of a turn, whatever token the language model was trained to end at.
    ends = original.stop_ids
    if "<|im_end|>" in original.controls:
        found["eos_token_id"] = original.controls["<|im_end|>"]
    elif ends:
        found.setdefault("eos_token_id", min(ends))
    found["add_bos_token"] = original.bos_id is not None
    return found


def _check_same(original: Tokenizer, metadata: Mapping[str, Any], directory: Path) -> None:
    found = load_gguf_tokenizer(metadata)
    same = found.controls == original.controls and found.bos_id == original.bos_id
    for text in _PROBES:
        same = same and found.encode_text(text) == original.encode_text(text)
    if not same or not original.stop_ids >= found.eos_ids:
        raise UnsupportedError(
            f"The tokenizer in {directory} cannot be written to a GGUF file: read back, it cuts "
            "text in another way.",
            "Please report it, with the name of the model.",
        )
