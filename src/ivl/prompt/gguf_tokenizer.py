"""The tokenizer that the metadata of a GGUF file hold, read and written.

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

Ids that no token has are written as `[PADn]`. What is about to be written is read back and compared
on text of many kinds, so a tokenizer that GGUF cannot express is an error, and not a model that
reads wrongly later.

Source: Keys.Tokenizer in gguf-py/gguf/constants.py, gguf-py/gguf/vocab.py, conversion/base.py
(get_vocab_base, _create_vocab_sentencepiece) and conversion/internlm.py of
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ivl.config import read_optional
from ivl.errors import CheckpointError, UnsupportedError
from ivl.json_values import RawObject
from ivl.prompt.added_tokens import TokenizerMetadata, read_metadata
from ivl.prompt.bpe import QWEN2_SPLIT, alphabet_of, assemble_bpe, qwen2_sections, read_bpe
from ivl.prompt.tokenizer import LeadingSpace, Tokenizer
from ivl.prompt.tokenizer_files import load_tokenizer

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _ADDED, _UNUSED, _BYTE = range(1, 7)
_WRONG = "The file was written wrongly; take another conversion of the model."
_ORIGIN = "The GGUF file"


def load_gguf_tokenizer(metadata: RawObject) -> Tokenizer:
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


def _load_bpe(metadata: RawObject) -> Tokenizer:
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
            roles={} if bos_id is None else {"bos_token": tokens[bos_id]},
            generation_eos_ids=frozenset(eos_ids),
            add_bos=_flag(metadata, "add_bos_token", False),
        ),
        vocab,
        merges,
    )


def _sections(metadata: RawObject) -> RawObject:
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


def _load_sentencepiece(metadata: RawObject) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    from ivl.prompt.sentencepiece_tokenizer import SentencePieceTokenizer, build_model

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


def _texts(metadata: RawObject, key: str) -> list[str]:
    value = metadata.get(_PREFIX + key)
    # All elements of an array are of one type, and there are 150,000 of these.
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise CheckpointError(f"{_ORIGIN} has no list {_PREFIX}{key}.", _WRONG)
    return value


def _kinds(metadata: RawObject, num_tokens: int) -> list[int]:
    kinds = np.array(_numbers(metadata, "token_type"))
    if len(kinds) != num_tokens or not np.isin(kinds, range(1, 7)).all():
        raise CheckpointError(f"{_ORIGIN} does not say of every token what it is.", _WRONG)
    return kinds.astype(int).tolist()


def _numbers(metadata: RawObject, key: str) -> list[float]:
    """A list of numbers; empty where there is none."""
    value = metadata.get(_PREFIX + key)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not isinstance(value, list | tuple):
        return []
    return [number for number in value if isinstance(number, int | float)]


def _text(metadata: RawObject, key: str) -> str | None:
    value = metadata.get(_PREFIX + key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{_ORIGIN} has no text as {_PREFIX}{key}.", _WRONG)
    return value


def _flag(metadata: RawObject, key: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{_ORIGIN} says neither true nor false of {_PREFIX}{key}.", _WRONG)
    return value


def _eos_ids(metadata: RawObject, num_tokens: int) -> set[int]:
    found = (_token_id(metadata, role, num_tokens) for role in ("eos", "eot"))
    return {token_id for token_id in found if token_id is not None}


def _token_id(metadata: RawObject, role: str, num_tokens: int) -> int | None:
    value = metadata.get(f"{_PREFIX}{role}_token_id")
    if value is not None and not (type(value) is int and 0 <= value < num_tokens):
        raise CheckpointError(
            f"{_ORIGIN} gives the {role} token the id {value!r}, of {num_tokens} tokens.", _WRONG
        )
    return value


_PROBES = (
    "What is the total? It's 12:30; I'LL pay $1,234.56 (incl. 19% VAT) \u2014 4\u00d72\u00bd\u2026",
    "  line\r\nline\n\n\n  \n\ttab\t\t end \u00a0nbsp\u3000ideographic",
    "def f(x):\n    return {k: v for k, v in x.items() if k != '__init__'}  # ok\n",
    "\u8bf7\u8be6\u7ec6\u63cf\u8ff0\u8fd9\u5f20\u56fe\u7247\u3002\u66f8\u751f \u6771\u4eac "
    "\ud55c\uad6d\uc5b4 \u0627\u0644\u0639 \u05e2\u05d1 \u0e44\u0e17\u0e22 e\u0301 \u00e9",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f 00120 3333",
    "<|im_end|>\n<|im_start|>system <IMG_CONTEXT><img></img> <0x41> \u2581 \u2581\u2581",
)


def tokenizer_metadata(directory: Path, vocab_size: int) -> RawObject:
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
    sections = read_optional(directory / "tokenizer.json")
    added = read_metadata(directory, sections)
    byte_level = not sections or alphabet_of(sections.get("decoder") or {})[0] == "byte_level"
    if (directory / "tokenizer.model").exists() and not (sections and byte_level):
        found = _sentencepiece(directory, added, vocab_size)
    elif byte_level:
        found = _byte_level(directory, sections, added, vocab_size)
    else:
        found = _byte_fallback(directory, sections, added, vocab_size)
    found |= _ends(added, original)
    named = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    _check_same(original, named, directory)
    return named


def _byte_level(
    directory: Path, sections: RawObject, added: TokenizerMetadata, vocab_size: int
) -> RawObject:
    """Qwen2's kind; without a `tokenizer.json`, from `vocab.json` and `merges.txt`."""
    vocab, merges = read_bpe(directory, sections)
    tokens = _Vocabulary(vocab_size)
    for text, token_id in vocab.items():
        tokens.put(token_id, text)
    tokens.put_added(added)
    # A space of their own is written as byte-level text has it.
    pairs = [[piece.replace(" ", "\u0120") for piece in merge] for merge in merges]
    return {
        "model": "gpt2",
        "pre": _cut_name(sections),
        **tokens.entries(),
        "merges": [" ".join(pair) for pair in pairs],
    }


def _byte_fallback(
    directory: Path, sections: RawObject, added: TokenizerMetadata, vocab_size: int
) -> RawObject:
    """A SentencePiece model that was rewritten as a `tokenizer.json`."""
    vocab, merges = read_bpe(directory, sections)
    unk = (sections.get("model") or {}).get("unk_token")
    scores = _scores_of_merges(vocab, merges)
    tokens = _Vocabulary(vocab_size)
    for text, token_id in vocab.items():
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = _UNKNOWN if text == unk else _BYTE if is_byte else _NORMAL
        tokens.put(token_id, text, kind, 0.0 if kind == _BYTE else scores[text])
    tokens.put_added(added, without=unk)
    return _llama_entries(tokens, _puts_space_in_front(sections))


def _sentencepiece(directory: Path, added: TokenizerMetadata, vocab_size: int) -> RawObject:
    """The pieces of a SentencePiece model.

    Pieces `[UNUSED_TOKEN_n]` of InternLM2 are unused, as llama.cpp has them.
    """
    from sentencepiece import SentencePieceProcessor

    from ivl.prompt.sentencepiece_tokenizer import read_space_rules

    model = (directory / "tokenizer.model").read_bytes()
    processor = SentencePieceProcessor(model_proto=model)
    tokens = _Vocabulary(vocab_size)
    for piece_id in range(processor.get_piece_size()):
        text, kind = processor.id_to_piece(piece_id), _NORMAL
        if processor.is_unknown(piece_id):
            kind = _UNKNOWN
        elif processor.is_control(piece_id):
            kind = _CONTROL
        elif processor.is_byte(piece_id):
            kind = _BYTE
        elif processor.is_unused(piece_id) or text.startswith("[UNUSED"):
            kind = _UNUSED
        if text == "\x00":
            # llama.cpp takes text up to the first zero byte. The byte token says the same.
            text, kind = "[UNUSED_NUL]", _UNUSED
        tokens.put(piece_id, text, kind, processor.get_score(piece_id))
    tokens.put_added(added, without=processor.id_to_piece(processor.unk_id()))
    return _llama_entries(tokens, read_space_rules(model).add_dummy_prefix)


def _llama_entries(tokens: _Vocabulary, add_space_prefix: bool) -> RawObject:
    return {
        "model": "llama",
        "pre": "default",
        **tokens.entries(),
        "scores": np.array(tokens.scores, np.float32),
        "add_space_prefix": add_space_prefix,
    }


def _puts_space_in_front(sections: RawObject) -> bool:
    """Whether text gets a space mark before it: by the normaliser, or by the cutting."""
    text = repr((sections.get("normalizer"), sections.get("pre_tokenizer")))
    signs = ("'Prepend'", "'prepend_scheme': 'always'", "'prepend_scheme': 'first'")
    return any(sign in text for sign in signs)


def _ends(added: TokenizerMetadata, original: Tokenizer) -> RawObject:
    """The ids of bos, eos and their like, and whether bos starts a prompt."""
    found: RawObject = {}
    for role, name in added.roles.items():
        token_id = added.added.get(name, original.controls.get(name))
        if role in _ROLES and token_id is not None:
            found[_ROLES[role]] = token_id
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


def _check_same(original: Tokenizer, metadata: RawObject, directory: Path) -> None:
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


_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
}
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0


class _Vocabulary:
    """A token for each of `size` ids; `[PADn]`, never used, until it is put."""

    def __init__(self, size: int) -> None:
        self.texts = [f"[PAD{number}]" for number in range(size)]
        self.kinds = [_UNUSED] * size
        self.scores = [_PAD_SCORE] * size

    def put(self, token_id: int, text: str, kind: int = _NORMAL, score: float = 0.0) -> None:
        self.texts[token_id], self.kinds[token_id] = text, kind
        self.scores[token_id] = score

    def put_added(self, added: TokenizerMetadata, *, without: str | None = None) -> None:
        """All added tokens but the one for unknown text, which is a piece like others."""
        for name, token_id in added.added.items():
            if name == without:
                continue
            looks_special = name.startswith("<|") and name.endswith("|>")
            special = looks_special or name in added.special_names
            self.put(token_id, name, _CONTROL if special else _ADDED, _ADDED_SCORE)

    def entries(self) -> RawObject:
        return {"tokens": self.texts, "token_type": np.array(self.kinds, np.int32)}


def _scores_of_merges(
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


def _cut_name(sections: RawObject) -> str:
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
