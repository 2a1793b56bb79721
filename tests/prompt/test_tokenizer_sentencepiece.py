"""The tokenizer of the InternLM2 sizes against SentencePiece and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivl.errors import UnsupportedError
from ivl.prompt.tokenizer import Tokenizer, require_image_tokens
from ivl.prompt.tokenizer_files import load_tokenizer

quick = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_internlm_equals_sentencepiece(
    internlm: Tokenizer, processor: Any, corpus: list[str]
) -> None:
    for text in corpus:
        plain = text.replace("[UNUSED_TOKEN_3]", "")
        assert internlm.encode_text(plain) == processor.encode(plain), plain


@quick
@given(text=st.text(max_size=60))
def test_internlm_equals_sentencepiece_on_any_text(
    internlm: Tokenizer, processor: Any, text: str
) -> None:
    ids = internlm.encode_text(text)
    assert ids == processor.encode(text)
    assert internlm.decode(ids) == processor.decode(ids)


@quick
@given(
    parts=st.lists(
        st.sampled_from(
            """[UNUSED_TOKEN_3] [UNUSED_TOKEN_4] [UNUSED_TOKEN_ 3] <s> </s> <unk> <|im_end|> <img>
            <IMG_CONTEXT> ▁ total <0x41> 字""".split()
        ),
        max_size=8,
    )
)
def test_typed_control_tokens_stay_text(
    internlm: Tokenizer, processor: Any, parts: list[str]
) -> None:
    text = "".join(parts)
    ids = internlm.encode_text(text)
    assert not internlm.control_ids.intersection(ids)
    assert 0 not in ids
    normal = text.replace("▁", " ")
    assert internlm.decode(ids).split() == normal.split()


def test_unused_pieces_that_nobody_took_over_keep_their_ids(
    internlm: Tokenizer, processor: Any
) -> None:
    piece = processor.piece_to_id("[UNUSED_TOKEN_2]")
    assert piece in processor.encode("a [UNUSED_TOKEN_2] b")
    assert internlm.encode_text("a [UNUSED_TOKEN_2] b") == processor.encode("a [UNUSED_TOKEN_2] b")


def test_internlm_facts(internlm: Tokenizer, processor: Any) -> None:
    size = processor.get_piece_size()
    assert internlm.vocab_size == size + 9
    assert internlm.bos_id == 1
    assert internlm.eos_ids == {2}
    assert internlm.stop_ids == {2, internlm.control("<|im_end|>")}
    assert require_image_tokens(internlm) == (size, size + 1, size + 2)
    assert internlm.control("<|im_end|>") == processor.piece_to_id("[UNUSED_TOKEN_3]")
    assert not internlm.has_control("[UNUSED_TOKEN_3]")
    assert internlm.token_bytes(internlm.control("<|im_end|>")) == b"<|im_end|>"
    assert internlm.token_bytes(processor.piece_to_id("<0xE4>")) == b"\xe4"
    assert internlm.token_bytes(processor.piece_to_id("▁")) == b" "
    assert internlm.token_bytes(size + 9) == b""
    assert 0 not in internlm.control_ids
    assert internlm.decode([0, 1, 2]) == ""


def test_a_whole_prompt_equals_the_slow_tokenizer(
    internlm: Tokenizer, internlm_directory: Path, processor: Any
) -> None:
    """transformers' own code cuts the prompt at added tokens; the rest is SentencePiece."""
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        def get_vocab(self) -> dict[str, int]:
            pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
            return pieces | self.added_tokens_encoder

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return processor.encode(text, out_type=str)

        def _convert_token_to_id(self, token: str) -> int:
            return processor.piece_to_id(token)

        def build_inputs_with_special_tokens(self, ids: list[int], _: Any = None) -> list[int]:
            return [processor.bos_id(), *ids]

        @property
        def vocab_size(self) -> int:
            return processor.get_piece_size()

    config = json.loads((internlm_directory / "tokenizer_config.json").read_text())
    decoder = {
        int(i): tokenizers.AddedToken(entry["content"], special=True)
        for i, entry in config["added_tokens_decoder"].items()
    }
    roles = {key: config[key] for key in ("bos_token", "eos_token", "unk_token")}
    slow = Slow(added_tokens_decoder=decoder, **roles)
    runs = ["system\n你是书生·万象。", "\n", "user\nThe total", "\nof  what?", " \n", "assistant\n"]
    names = ["<|im_end|>", "<|im_start|>", "<img>", "<|im_end|>", "<|im_start|>"]
    prompt = "<|im_start|>" + runs[0]
    ids = [internlm.bos_id, internlm.control("<|im_start|>"), *internlm.encode_text(runs[0])]
    for name, run in zip(names, runs[1:], strict=True):
        prompt += name + run
        ids += [internlm.control(name), *internlm.encode_text(run)]
    tokens = slow.tokenize(prompt)
    assert ids == slow.build_inputs_with_special_tokens(slow.convert_tokens_to_ids(tokens))


def test_bos_is_left_out_when_the_metadata_say_so(plain_directory: Path) -> None:
    path = plain_directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": False}))
    assert load_tokenizer(plain_directory).bos_id is None


def test_a_bare_model_file_has_its_own_control_pieces(plain_directory: Path) -> None:
    (plain_directory / "tokenizer_config.json").unlink()
    bare = load_tokenizer(plain_directory)
    assert bare.controls == {"<s>": 1, "</s>": 2}
    assert (bare.bos_id, bare.eos_ids) == (1, {2})
    with pytest.raises(UnsupportedError, match="<IMG_CONTEXT>"):
        require_image_tokens(bare)
