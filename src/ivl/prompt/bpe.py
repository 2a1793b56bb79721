"""Byte pair encoding as the `tokenizers` library does it.

The Qwen2 sizes ship `vocab.json` and `merges.txt`, or the same in one `tokenizer.json`. The
InternLM2 sizes in the layout of transformers carry a `tokenizer.json` with byte fallback. Only the
parts that the family's tokenizers are made of are known; any other is refused. Building them one by
one, rather than handing over the whole file, leaves the added tokens out and turns every defect of
a file into an error that names it.

Source: Qwen2Tokenizer and LlamaTokenizerFast in https://github.com/huggingface/transformers; the
serialisation of https://github.com/huggingface/tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from ivl.config import read_json, read_optional
from ivl.errors import CheckpointError, UnsupportedError
from ivl.json_values import RawObject
from ivl.prompt.added_tokens import TokenizerMetadata, read_metadata
from ivl.prompt.tokenizer import LeadingSpace, Tokenizer
from ivl.refused import refuse_lfs_pointer

Merges = list[tuple[str, str]]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANEW = "Fetch the tokenizer's files again; a download may have been cut short."
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (as in GPT-2).

    Printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()

_RARE_BYTES = {*range(0x20)} - {*b"\t\n\r"} | {0xC0, 0xC1, *range(0xF1, 0x100)}
"""Control characters, bytes of no character, first bytes of planes 4 to 16."""


class BpeTokenizer(Tokenizer):
    """A vocabulary with merges; see `Tokenizer` for the interface."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        pieces: Mapping[int, str],
        alphabet: Alphabet,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self._core = core
        self._pieces = pieces
        self._alphabet = alphabet

    def _encode(self, text: str) -> list[int]:
        return self._core.encode(text, add_special_tokens=False).ids

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id, "")
        if self._alphabet == "byte_level":
            values = [_BYTE_OF.get(char, -1) for char in piece]
            return piece.encode() if -1 in values else bytes(values)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    def has_space_mark(self, token_id: int) -> bool:
        return self._piece_bytes(token_id).startswith(b" ")


def load_bpe(directory: Path) -> BpeTokenizer:
    """From `tokenizer.json`, else from `vocab.json` and `merges.txt`."""
    sections = read_optional(directory / "tokenizer.json")
    metadata = read_metadata(directory, sections)
    if not sections and metadata.tokenizer_class not in (None, *_QWEN2_CLASSES):
        raise UnsupportedError(
            f"vocab.json and merges.txt belong to a {metadata.tokenizer_class}.",
            "Without a tokenizer.json only Qwen2's way of cutting text is known.",
        )
    vocab, merges = read_bpe(directory, sections)
    sections = sections or qwen2_sections(add_prefix_space=metadata.add_prefix_space)
    return assemble_bpe(directory, sections, metadata, vocab, merges)


def read_bpe(directory: Path, sections: RawObject) -> tuple[dict[str, int], Merges]:
    """Vocabulary and merges: of the `tokenizer.json` whose sections these are, or, without any, of
    `vocab.json` and `merges.txt`."""
    if sections:
        return _model_of(sections, directory / "tokenizer.json")
    vocab = _checked_vocab(read_json(directory / "vocab.json"), directory / "vocab.json")
    return vocab, _read_merges(directory / "merges.txt")


def assemble_bpe(
    origin: Path | str,
    sections: RawObject,
    metadata: TokenizerMetadata,
    vocab: dict[str, int],
    merges: Merges,
) -> BpeTokenizer:
    """A tokenizer of the sections of a `tokenizer.json`; `origin` is for messages."""
    alphabet, drops_space = alphabet_of(sections.get("decoder") or {})
    unk = (sections.get("model") or {}).get("unk_token")
    controls = {name: i for name, i in metadata.added.items() if name != unk}
    pieces = {token_id: piece for piece, token_id in vocab.items()}
    if len(pieces) != len(vocab):
        raise CheckpointError(f"{origin}: two pieces of the vocabulary share an id.", _ANEW)
    if alphabet == "byte_level":
        _check_no_reuse(controls, pieces)
    core_vocab, core_merges = _without_controls(vocab, merges, set(controls.values()), unk)
    if alphabet == "byte_level" and unk is None:
        _check_bytes(core_vocab, origin)
    ids_by_name = {**vocab, **metadata.added}
    bos_id = template_bos_id(sections.get("post_processor") or {})
    if metadata.add_bos is not None:
        bos_id = ids_by_name.get(metadata.roles.get("bos_token", "")) if metadata.add_bos else None
    return BpeTokenizer(
        build_core(sections, core_vocab, core_merges),
        pieces,
        alphabet,
        controls=controls,
        special_ids={ids_by_name[n] for n in metadata.special_names if n in ids_by_name},
        bos_id=bos_id,
        eos_ids=metadata.eos_ids(ids_by_name),
        vocab_size=max(ids_by_name.values(), default=-1) + 1,
        leading_space=LeadingSpace.DROP_ONE if drops_space else LeadingSpace.KEEP,
        broken_bytes="one sign" if alphabet == "byte_level" else "a sign each",
    )


def _without_controls(
    vocab: Mapping[str, int], merges: Merges, control_ids: set[int], unk: str | None
) -> tuple[dict[str, int], Merges]:
    """The vocabulary and merges from which no text can become a control token.

    A converted SentencePiece model may list a control token, or the unused piece whose id it took
    over, among its pieces and even merge letters into it.
    """
    if unk is None and control_ids.isdisjoint(vocab.values()):
        return dict(vocab), merges
    kept = {piece: i for piece, i in vocab.items() if i not in control_ids}
    mergeable = set(kept) - {unk}
    return kept, [
        (left, right)
        for left, right in merges
        if left in mergeable
        and right in mergeable
        and (left + right in mergeable or left + right not in vocab)
    ]


def _check_no_reuse(controls: Mapping[str, int], pieces: Mapping[int, str]) -> None:
    for name, token_id in controls.items():
        if pieces.get(token_id, name) != name:
            raise CheckpointError(
                f"The added token {name!r} has the id {token_id}, "
                f"which the vocabulary gives to {pieces[token_id]!r}.",
                "The tokenizer's files come from different models; fetch all of them from one.",
            )


def _check_bytes(vocab: Mapping[str, int], origin: Path | str) -> None:
    """A vocabulary holds every byte that text is made of, so that no text vanishes.

    It may lack bytes that no character has, or only control characters and planes of Unicode that
    are not assigned (SmolLM2's does); upstream passes over those as well.
    """
    missing = {byte for char, byte in _BYTE_OF.items() if char not in vocab}
    if not missing <= _RARE_BYTES:
        raise CheckpointError(
            f"{origin}: the vocabulary lacks {len(missing)} of the 256 bytes, and text with them "
            "would vanish.",
            "Fetch the file again, or train the tokenizer with the whole byte alphabet.",
        )


def _model_of(sections: RawObject, path: Path) -> tuple[dict[str, int], Merges]:
    model = sections.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else "nothing"
    if not isinstance(model, dict) or kind != "BPE":
        raise UnsupportedError(
            f"{path} holds a model of type {kind}.",
            "The models of this family use byte pair encoding (BPE).",
        )
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} holds no list of merges.", _ANEW)
    return _checked_vocab(model.get("vocab"), path), [_pair(merge, path) for merge in merges]


def _checked_vocab(vocab: Any, path: Path) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{path} holds no vocabulary.", _ANEW)
    for piece, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0:
            raise CheckpointError(f"{path} gives {piece!r} the id {token_id!r}.", _ANEW)
    return vocab


def _read_merges(path: Path) -> Merges:
    refuse_lfs_pointer(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.",
            "vocab.json needs merges.txt beside it; fetch both, or tokenizer.json.",
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text in UTF-8.", _ANEW) from error
    rows = (line.rstrip("\r") for line in lines if not line.startswith("#version"))
    return [_pair(row, path) for row in rows if row]


def _pair(merge: str | Sequence[Any], path: Path) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2:
        left, right = parts
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise CheckpointError(f"{path} has a merge that is no pair: {merge!r}.", _ANEW)


Alphabet = Literal["byte_level", "byte_fallback"]

# How Qwen2 cuts text before merging (Qwen2Tokenizer in transformers).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_MODEL_OPTIONS = (
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)


def qwen2_sections(*, add_prefix_space: bool = False) -> RawObject:
    """The sections that `vocab.json` and `merges.txt` leave unsaid for a Qwen2 tokenizer."""
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": {"type": "ByteLevel"},
    }


def build_core(
    sections: RawObject, vocab: Mapping[str, int], merges: list[tuple[str, str]]
) -> tokenizers.Tokenizer:
    """A tokenizer of exactly these sections, vocabulary and merges, without added tokens.

    CheckpointError when they contradict each other, UnsupportedError for an unknown part.
    """
    for left, right in merges:
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(
                f"The tokenizer merges {left!r} and {right!r}, which its vocabulary lacks.",
                "Vocabulary and merges belong to different models; fetch both from one.",
            )
    model = sections.get("model") or {}
    if model.get("dropout"):
        raise UnsupportedError("The tokenizer drops merges at random (dropout).", "Set it to null.")
    options = {key: model[key] for key in _MODEL_OPTIONS if model.get(key) is not None}
    core = tokenizers.Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, **options))
    if sections.get("normalizer") is not None:
        core.normalizer = _normalizer(sections["normalizer"])
    if sections.get("pre_tokenizer") is not None:
        core.pre_tokenizer = _pre_tokenizer(sections["pre_tokenizer"])
    return core


def alphabet_of(decoder: RawObject) -> tuple[Alphabet, bool]:
    """How pieces become bytes, and whether decoding drops one leading space."""
    parts = (decoder.get("decoders") or []) if _type(decoder) == "Sequence" else [decoder]
    kinds = [_type(part) for part in parts]
    if kinds == ["ByteLevel"]:
        return "byte_level", False
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        replace, strip = parts[0], parts[3:]
        one_space = all(p.get("content") == " " and p.get("start") == 1 for p in strip)
        if _pattern(replace) == "▁" and replace.get("content") == " " and one_space:
            return "byte_fallback", bool(strip)
    raise UnsupportedError(
        f"tokenizer.json decodes by {' + '.join(kinds) or 'nothing'}.",
        "Byte-level BPE (Qwen2) and SentencePiece with byte fallback (InternLM2, Llama) are read.",
    )


def template_bos_id(post_processor: RawObject) -> int | None:
    """The id that `tokenizer.json` puts before every text, if any."""
    if _type(post_processor) == "Sequence":
        found = [template_bos_id(part) for part in post_processor.get("processors") or ()]
        return next((token_id for token_id in found if token_id is not None), None)
    if _type(post_processor) != "TemplateProcessing":
        return None
    first = (post_processor.get("single") or [{}])[0]
    name = first.get("SpecialToken", {}).get("id")
    ids = post_processor.get("special_tokens", {}).get(name, {}).get("ids") or [None]
    return ids[0] if type(ids[0]) is int else None


def _normalizer(spec: Any) -> normalizers.Normalizer:
    kind = _type(spec)
    if kind == "Sequence":
        return normalizers.Sequence([_normalizer(part) for part in spec.get("normalizers") or ()])
    if kind in _FORMS:
        return getattr(normalizers, kind)()
    if kind == "Prepend" and isinstance(spec.get("prepend"), str):
        return normalizers.Prepend(spec["prepend"])
    if kind == "Replace" and isinstance(spec.get("content"), str):
        return normalizers.Replace(_pattern(spec), spec["content"])
    raise _unknown("normalizer", spec)


def _pre_tokenizer(spec: Any) -> pre_tokenizers.PreTokenizer:
    kind = _type(spec)
    if kind == "Sequence":
        parts = spec.get("pretokenizers") or ()
        return pre_tokenizers.Sequence([_pre_tokenizer(part) for part in parts])
    if kind == "ByteLevel":
        return pre_tokenizers.ByteLevel(
            add_prefix_space=bool(spec.get("add_prefix_space")),
            use_regex=bool(spec.get("use_regex", True)),
        )
    if kind == "Digits":
        return pre_tokenizers.Digits(individual_digits=bool(spec.get("individual_digits")))
    if kind == "Split" and isinstance(spec.get("behavior"), str):
        behavior = re.sub(r"(?<!^)(?=[A-Z])", "_", spec["behavior"]).lower()
        return pre_tokenizers.Split(_pattern(spec), behavior, bool(spec.get("invert")))
    if kind == "Metaspace":
        return pre_tokenizers.Metaspace(
            replacement=spec.get("replacement", "▁"),
            prepend_scheme=spec.get("prepend_scheme", "always"),
            split=bool(spec.get("split", True)),
        )
    raise _unknown("pre_tokenizer", spec)


def _pattern(spec: RawObject) -> Any:
    pattern = spec.get("pattern")
    if isinstance(pattern, dict):
        if isinstance(pattern.get("String"), str):
            return pattern["String"]
        if isinstance(pattern.get("Regex"), str):
            return Regex(pattern["Regex"])
    raise CheckpointError(f"tokenizer.json has a part without a pattern: {spec!r}.", _ANEW)


def _type(spec: Any) -> str:
    return str(spec.get("type", "nothing")) if isinstance(spec, dict) else "nothing"


def _unknown(section: str, spec: Any) -> UnsupportedError:
    return UnsupportedError(
        f"tokenizer.json uses an unknown {section}: {_type(spec)}.",
        "Only what Qwen2, InternLM2 and Llama tokenizers are made of is read.",
    )
