"""The tokenizer that the metadata of a GGUF file hold.

    tokenizer.ggml.model        gpt2: byte-level byte pair encoding; llama: SentencePiece
    tokenizer.ggml.pre          how gpt2's text is cut before merging: qwen2, smollm
    tokenizer.ggml.tokens       the text of every id
    tokenizer.ggml.token_type   1 normal, 2 unknown, 3 control, 4 added, 5 unused, 6 byte
    tokenizer.ggml.merges       gpt2 alone: two pieces with a space between them
    tokenizer.ggml.scores       llama alone
    tokenizer.ggml.*_token_id   bos, eos, eot

Tokens of type 3 and 4 are added tokens. Those of type 3 are special, and so hidden from the
reader: llama.cpp counts names such as `<|fim_prefix|>` among them though the original does not.

A SentencePiece model is put together again from its pieces. Its official InternLM2 files have
pieces `[UNUSED_TOKEN_n]`, which llama.cpp marks as unused: such text is cut into letters here.

Source: Keys.Tokenizer in gguf-py/gguf/constants.py and conversion/base.py of
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ivl.errors import CheckpointError, UnsupportedError
from ivl.prompt.added_tokens import TokenizerMetadata
from ivl.prompt.bpe_parts import qwen2_sections
from ivl.prompt.tokenizer_base import LeadingSpace, Tokenizer

_PREFIX = "tokenizer.ggml."
_NORMAL, _CONTROL, _ADDED, _UNUSED = 1, 3, 4, 5
_WRONG = "The file was written wrongly; take another conversion of the model."
_ORIGIN = "The GGUF file"


def load_gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file's metadata, whose arrays of numbers may be NumPy arrays.

    CheckpointError when it is damaged, UnsupportedError for one of another kind. Whether it knows
    images is `ivl.prompt.tokenizer.require_image_tokens`'s to say.
    """
    kind = _text(metadata, "model")
    if _flag(metadata, "add_eos_token", False):
        raise UnsupportedError(
            f"{_ORIGIN} asks for an end token after every prompt.",
            "No model of this family does.",
        )
    if kind == "gpt2":
        return _load_bpe(metadata)
    if kind == "llama":
        return _load_sentencepiece(metadata)
    if kind is None:
        raise CheckpointError(f"{_ORIGIN} holds no tokenizer.", _WRONG)
    raise UnsupportedError(
        f"{_ORIGIN} has a tokenizer of type {kind!r}.",
        "The models of this family have gpt2 (Qwen2) or llama (InternLM2, Llama).",
    )


def _load_bpe(metadata: Mapping[str, Any]) -> Tokenizer:
    from ivl.prompt.bpe import assemble_bpe

    tokens = _texts(metadata, "tokens")
    kinds = _kinds(metadata, len(tokens))
    added = _added(tokens, kinds)
    normal = [token_id for token_id, kind in enumerate(kinds) if kind == _NORMAL]
    vocab = {tokens[token_id]: token_id for token_id in normal}
    if len(vocab) != len(normal):  # of two with one name, the last one stayed
        twice = next(tokens[i] for i in normal if vocab[tokens[i]] != i)
        raise CheckpointError(f"{_ORIGIN} has the token {twice!r} twice.", _WRONG)
    merges: list[tuple[str, str]] = []
    for merge in _texts(metadata, "merges"):
        left, _, right = merge.partition(" ")
        if not (left and right) or " " in right:
            raise CheckpointError(f"{_ORIGIN} has a merge that is no pair: {merge!r}.", _WRONG)
        merges.append((left, right))
    eos_ids = _eos_ids(metadata, len(tokens))
    bos_id = _token_id(metadata, "bos", len(tokens))
    return assemble_bpe(
        _ORIGIN,
        _sections(metadata),
        TokenizerMetadata(
            added=added,
            special_names=frozenset(tokens[i] for i, k in enumerate(kinds) if k == _CONTROL),
            bos_name=None if bos_id is None else tokens[bos_id],
            eos_name=None,
            unk_name=None,
            generation_eos_ids=frozenset(eos_ids),
            add_bos=_flag(metadata, "add_bos_token", False),
            add_prefix_space=False,
            tokenizer_class=None,
        ),
        vocab,
        merges,
    )


def _sections(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How text is cut before merging, as sections of a `tokenizer.json`."""
    pre = _text(metadata, "pre")
    if pre == "qwen2":
        return qwen2_sections()
    if pre == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        cut = {"type": "Sequence", "pretokenizers": [digits, letters]}
        return {"pre_tokenizer": cut, "decoder": {"type": "ByteLevel"}}
    raise UnsupportedError(
        f"{_ORIGIN} cuts text in the way called {pre!r}.",
        "ivl knows qwen2 and smollm. A file without this entry is too old to be exact.",
    )


def _load_sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    from ivl.prompt.sentencepiece_file import build_model
    from ivl.prompt.sentencepiece_tokenizer import SentencePieceTokenizer

    tokens = _texts(metadata, "tokens")
    kinds = _kinds(metadata, len(tokens))
    scores = _numbers(metadata, "scores")
    if len(scores) != len(tokens) or not all(math.isfinite(score) for score in scores):
        raise CheckpointError(f"{_ORIGIN} has no score for every token.", _WRONG)
    added = _added(tokens, kinds)
    add_dummy_prefix = _flag(metadata, "add_space_prefix", True)
    # An added token is a control piece for the model, visible or not: text never becomes it.
    shown = [_CONTROL if kind == _ADDED else kind for kind in kinds]
    pieces = [(t, float(s), k) for t, s, k in zip(tokens, scores, shown, strict=True)]
    try:
        processor = SentencePieceProcessor(
            model_proto=build_model(pieces, add_dummy_prefix=add_dummy_prefix)
        )
    except (RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{_ORIGIN} holds a tokenizer that SentencePiece refuses: {error}.", _WRONG
        ) from error
    bos_id = _token_id(metadata, "bos", len(tokens))
    return SentencePieceTokenizer(
        processor,
        controls=added,
        special_ids=[i for i, kind in enumerate(kinds) if kind == _CONTROL],
        bos_id=bos_id if _flag(metadata, "add_bos_token", True) else None,
        eos_ids=_eos_ids(metadata, len(tokens)),
        vocab_size=len(tokens),
        leading_space=LeadingSpace.DROP_ONE if add_dummy_prefix else LeadingSpace.KEEP,
        broken_bytes="a sign each",
    )


def _added(tokens: list[str], kinds: list[int]) -> dict[str, int]:
    added: dict[str, int] = {}
    for token_id in [i for i, kind in enumerate(kinds) if kind in (_CONTROL, _ADDED)]:
        token = tokens[token_id]
        if not token or added.setdefault(token, token_id) != token_id:
            what = f"the added token {token!r} twice" if token else "an added token without a name"
            raise CheckpointError(f"{_ORIGIN} has {what}.", _WRONG)
    return added


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(_PREFIX + key)
    # All elements of an array are of one type, and there are 150,000 of these.
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise CheckpointError(f"{_ORIGIN} has no list {_PREFIX}{key}.", _WRONG)
    return value


def _kinds(metadata: Mapping[str, Any], num_tokens: int) -> list[int]:
    kinds = np.array(_numbers(metadata, "token_type"))
    if len(kinds) != num_tokens or not np.isin(kinds, range(1, 7)).all():
        raise CheckpointError(f"{_ORIGIN} does not say of every token what it is.", _WRONG)
    return kinds.astype(int).tolist()


def _numbers(metadata: Mapping[str, Any], key: str) -> list[float]:
    """A list of numbers; empty where there is none."""
    value = metadata.get(_PREFIX + key)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not isinstance(value, list | tuple):
        return []
    return [number for number in value if isinstance(number, int | float)]


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(_PREFIX + key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{_ORIGIN} has no text as {_PREFIX}{key}.", _WRONG)
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{_ORIGIN} says neither true nor false of {_PREFIX}{key}.", _WRONG)
    return value


def _eos_ids(metadata: Mapping[str, Any], num_tokens: int) -> set[int]:
    found = (_token_id(metadata, role, num_tokens) for role in ("eos", "eot"))
    return {token_id for token_id in found if token_id is not None}


def _token_id(metadata: Mapping[str, Any], role: str, num_tokens: int) -> int | None:
    value = metadata.get(f"{_PREFIX}{role}_token_id")
    if value is not None and not (type(value) is int and 0 <= value < num_tokens):
        raise CheckpointError(
            f"{_ORIGIN} gives the {role} token the id {value!r}, of {num_tokens} tokens.", _WRONG
        )
    return value
