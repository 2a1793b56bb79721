"""From the sections of a `tokenizer.json` to the parts of the `tokenizers` library.

Only the parts that the family's tokenizers are made of are known; any other is refused. Building
them one by one, rather than handing over the whole file, leaves the added tokens out and turns
every defect of a file into an error that names it.

Source: the serialisation of https://github.com/huggingface/tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ivl.errors import CheckpointError, UnsupportedError

Alphabet = Literal["byte_level", "byte_fallback"]

# How Qwen2 cuts text before merging (Qwen2Tokenizer in transformers).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_FORMS = {
    "NFC": normalizers.NFC,
    "NFD": normalizers.NFD,
    "NFKC": normalizers.NFKC,
    "NFKD": normalizers.NFKD,
}
_MODEL_OPTIONS = (
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_ANEW = "Fetch the tokenizer's files again; a download may have been cut short."


def qwen2_sections(*, add_prefix_space: bool = False) -> dict[str, Any]:
    """The sections that `vocab.json` and `merges.txt` leave unsaid for a Qwen2 tokenizer."""
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": {"type": "ByteLevel"},
    }


def build_core(
    sections: Mapping[str, Any], vocab: Mapping[str, int], merges: list[tuple[str, str]]
) -> Tokenizer:
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
    core = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, **options))
    if sections.get("normalizer") is not None:
        core.normalizer = _normalizer(sections["normalizer"])
    if sections.get("pre_tokenizer") is not None:
        core.pre_tokenizer = _pre_tokenizer(sections["pre_tokenizer"])
    return core


def alphabet_of(decoder: Any) -> tuple[Alphabet, bool]:
    """How pieces become bytes, and whether decoding drops one leading space."""
    parts = decoder.get("decoders") if _type(decoder) == "Sequence" else [decoder]
    kinds = [_type(part) for part in parts or ()]
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


def template_bos_id(post_processor: Any) -> int | None:
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
        return _FORMS[kind]()
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


def _pattern(spec: Mapping[str, Any]) -> Any:
    pattern = spec.get("pattern")
    if isinstance(pattern, dict):
        if isinstance(pattern.get("String"), str):
            return pattern["String"]
        if isinstance(pattern.get("Regex"), str):
            return Regex(pattern["Regex"])
    raise CheckpointError(f"tokenizer.json has a part without a pattern: {spec!r}.", _ANEW)


def _type(spec: Any) -> str:
    return str(spec.get("type")) if isinstance(spec, dict) else "nothing"


def _unknown(section: str, spec: Any) -> UnsupportedError:
    return UnsupportedError(
        f"tokenizer.json uses an unknown {section}: {_type(spec)}.",
        "Only what Qwen2, InternLM2 and Llama tokenizers are made of is read.",
    )
