"""Text from single tokens: whole characters, and in sum what the libraries decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivl.prompt.tokenizer import StreamDecoder, Tokenizer
from ivl.prompt.tokenizer_files import load_tokenizer

quick = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def assert_stream(tokenizer: Tokenizer, ids: list[int], expected: str) -> None:
    assert tokenizer.decode(ids) == expected
    decoder = StreamDecoder(tokenizer)
    shown = ""
    for token_id in ids:
        shown += decoder.push(token_id)
        assert expected.startswith(shown)
    assert shown + decoder.finish() == expected
    assert decoder.finish() == ""


@quick
@given(data=st.data())
def test_streaming_internlm_equals_sentencepiece(
    internlm: Tokenizer, processor: Any, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, internlm.vocab_size - 1), max_size=12))
    shown = [i for i in ids if i not in internlm.special_ids]
    assert_stream(internlm, ids, processor.decode(shown))


@quick
@given(data=st.data())
def test_streaming_qwen_equals_transformers(
    qwen: Tokenizer, qwen_oracle: Any, data: st.DataObject
) -> None:
    high = st.integers(0, qwen.vocab_size - 1)
    ids = data.draw(st.lists(st.integers(0, 300) | high, max_size=12))
    assert_stream(qwen, ids, qwen_oracle.decode(ids, skip_special_tokens=True))


def test_text_is_shown_as_soon_as_it_is_whole(qwen: Tokenizer, internlm: Tokenizer) -> None:
    for tokenizer in (qwen, internlm):
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(i) for i in tokenizer.encode_text("x 😀y字")]
        assert "".join(pieces) == "x 😀y字"
        assert not any("\ufffd" in piece for piece in pieces)
        assert decoder.finish() == ""


def test_an_unfinished_character_is_replaced_at_the_end_only(qwen: Tokenizer) -> None:
    ids = qwen.encode_text("\U00013000")
    assert len(ids) > 1
    decoder = StreamDecoder(qwen)
    assert [decoder.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert decoder.finish() == "\ufffd"
    assert decoder.push(qwen.encode_text("a")[0]) == "a"


def test_a_shown_control_token_starts_a_new_run(spaced_directory: Path) -> None:
    tokenizer = load_tokenizer(spaced_directory)
    run = tokenizer.encode_text("The total")
    ids = [*run, tokenizer.control("<|im_end|>"), *run]
    assert tokenizer.decode(ids, skip_control=False) == "The total<|im_end|>The total"
    assert tokenizer.decode(ids) == "The total The total"
