"""Tokenizers from GGUF metadata, written as llama.cpp writes them, against the originals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers

from ivl.checkpoint.gguf import GGUFFile
from ivl.errors import CheckpointError, UnsupportedError
from ivl.prompt.gguf_tokenizer import load_gguf_tokenizer
from ivl.prompt.tokenizer import Tokenizer, require_image_tokens
from ivl.prompt.tokenizer_files import load_tokenizer

NORMAL, CONTROL, ADDED, UNUSED, BYTE = 1, 3, 4, 5, 6
Metadata = dict[str, Any]


def named(**values: Any) -> Metadata:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.fixture(scope="session")
def qwen_metadata(qwen_directory: Path) -> Metadata:
    """What the converter writes for the vocabulary in this directory."""
    vocab = json.loads((qwen_directory / "vocab.json").read_text("utf-8"))
    config = json.loads((qwen_directory / "tokenizer_config.json").read_text("utf-8"))
    tokens = sorted(vocab, key=lambda token: vocab[token])
    kinds = [NORMAL] * len(tokens)
    for token_id, entry in sorted(config["added_tokens_decoder"].items(), key=lambda e: int(e[0])):
        assert int(token_id) == len(tokens)
        tokens.append(entry["content"])
        kinds.append(CONTROL if entry["special"] else ADDED)
    special = gguf.SpecialVocab(qwen_directory, load_merges=True)
    return named(
        model="gpt2",
        pre="qwen2",
        tokens=tokens,
        token_type=np.array(kinds, np.int32),
        merges=special.merges,
        eos_token_id=tokens.index("<|im_end|>"),
        bos_token_id=151643,
        add_bos_token=False,
    )


@pytest.fixture(scope="session")
def from_gguf(qwen_metadata: Metadata, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("gguf") / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(qwen_metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(qwen_metadata["tokenizer.ggml.token_type"].tolist())
    writer.add_token_merges(qwen_metadata["tokenizer.ggml.merges"])
    writer.add_eos_token_id(qwen_metadata["tokenizer.ggml.eos_token_id"])
    writer.add_bos_token_id(151643)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return load_gguf_tokenizer(GGUFFile(path).metadata)


def test_qwen_in_gguf_equals_transformers(
    from_gguf: Tokenizer, qwen_oracle: Any, corpus: list[str]
) -> None:
    for text in corpus:
        expected = qwen_oracle.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert from_gguf.encode_text(text) == expected, text
        assert from_gguf.decode(expected) == qwen_oracle.decode(expected), text


def test_qwen_in_gguf_has_the_same_tokens(from_gguf: Tokenizer, qwen: Tokenizer) -> None:
    assert from_gguf.controls == qwen.controls
    assert from_gguf.special_ids == qwen.special_ids
    assert (from_gguf.bos_id, from_gguf.stop_ids) == (None, qwen.stop_ids)
    assert from_gguf.vocab_size == qwen.vocab_size
    assert require_image_tokens(from_gguf) == (151665, 151666, 151667)
    for token_id in range(0, 151675, 97):
        assert from_gguf.token_bytes(token_id) == qwen.token_bytes(token_id)


def small_metadata() -> Metadata:
    """A byte-level vocabulary of one merge."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, "it", "<|im_end|>"]
    return named(
        model="gpt2",
        pre="smollm",
        tokens=tokens,
        token_type=[NORMAL] * 257 + [CONTROL],
        merges=["i t"],
        eos_token_id=257,
    )


def test_smollm_cuts_digits_one_by_one() -> None:
    metadata = small_metadata()
    metadata["tokenizer.ggml.tokens"].insert(257, "12")
    metadata["tokenizer.ggml.token_type"] = [NORMAL] * 258 + [CONTROL]
    metadata["tokenizer.ggml.merges"].append("1 2")
    metadata["tokenizer.ggml.eos_token_id"] = 258
    found = load_gguf_tokenizer(metadata)
    assert [found.token_bytes(i) for i in found.encode_text("it12")] == [b"it", b"1", b"2"]
    assert found.stop_ids == {258}


def test_a_tokenizer_of_text_alone_has_no_images() -> None:
    with pytest.raises(UnsupportedError, match="<img>, </img>, <IMG_CONTEXT>"):
        require_image_tokens(load_gguf_tokenizer(small_metadata()))


def internlm_metadata(directory: Path) -> Metadata:
    """What the converter writes for a SentencePiece model and its added tokens."""
    model = (directory / "tokenizer.model").read_bytes()
    config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    tokens = [processor.id_to_piece(i) for i in range(size)]
    scores = [processor.get_score(i) for i in range(size)]
    kinds = [NORMAL] * size
    for i, token in enumerate(tokens):
        if processor.is_unknown(i):
            kinds[i] = 2
        elif processor.is_control(i):
            kinds[i] = CONTROL
        elif processor.is_byte(i):
            kinds[i] = BYTE
        elif token.startswith("[UNUSED"):
            kinds[i] = UNUSED
    for key, entry in sorted(config["added_tokens_decoder"].items(), key=lambda e: int(e[0])):
        if entry["content"] == "<unk>":
            continue
        if int(key) == len(tokens):
            tokens, scores, kinds = [*tokens, ""], [*scores, 0.0], [*kinds, 0]
        tokens[int(key)], scores[int(key)] = entry["content"], -1000.0
        kinds[int(key)] = CONTROL if entry["special"] else ADDED
    return named(
        model="llama",
        tokens=tokens,
        scores=np.array(scores, np.float32),
        token_type=np.array(kinds, np.int32),
        bos_token_id=1,
        eos_token_id=tokens.index("<|im_end|>"),
    )


@pytest.mark.parametrize("spaced", [False, True])
def test_sentencepiece_in_gguf_equals_the_original(
    spaced: bool, request: pytest.FixtureRequest, corpus: list[str]
) -> None:
    directory = request.getfixturevalue("spaced_directory" if spaced else "plain_directory")
    metadata = internlm_metadata(directory)
    metadata["tokenizer.ggml.add_space_prefix"] = spaced
    found, original = load_gguf_tokenizer(metadata), load_tokenizer(directory)
    assert (found.bos_id, found.vocab_size) == (original.bos_id, original.vocab_size)
    assert found.controls == original.controls
    assert found.stop_ids == original.stop_ids
    assert require_image_tokens(found) == require_image_tokens(original)
    for text in corpus:
        if "[UNUSED" in text:
            continue
        ids = original.encode_text(text)
        assert found.encode_text(text) == ids, text
        assert found.decode(ids) == original.decode(ids), text
        assert b"".join(map(found.token_bytes, ids)) == b"".join(map(original.token_bytes, ids))


DAMAGED: dict[str, Metadata] = {
    "has no list tokenizer.ggml.tokens": named(tokens=[]),
    "has no list tokenizer.ggml.merges": named(merges=None),
    "no pair": named(merges=["i"]),
    "which its vocabulary lacks": named(merges=["it it"]),
    "what it is": named(token_type=[NORMAL]),
    "what it is.": named(token_type=None),
    "eos token the id 9999": named(eos_token_id=9999),
    "holds no tokenizer": named(model=None),
    "lacks 256 of the 256 bytes": named(
        tokens=["a", "<|im_end|>"], token_type=[UNUSED, CONTROL], merges=["a a"], eos_token_id=1
    ),
}


@pytest.mark.parametrize("match", DAMAGED)
def test_damaged_tokenizers_are_refused(match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_gguf_tokenizer({**small_metadata(), **DAMAGED[match]})
    assert caught.value.hint


def test_tokens_that_share_a_name_are_refused() -> None:
    for kind in (NORMAL, CONTROL):
        metadata = small_metadata()
        metadata["tokenizer.ggml.tokens"] += ["it" if kind == NORMAL else "<|im_end|>"]
        metadata["tokenizer.ggml.token_type"] += [kind]
        with pytest.raises(CheckpointError, match="twice"):
            load_gguf_tokenizer(metadata)


UNSUPPORTED: dict[str, Metadata] = {
    "type 'bert'": named(model="bert"),
    "called 'llama-bpe'": named(pre="llama-bpe"),
    "called None": named(pre=None),
    "end token": named(add_eos_token=True),
}


@pytest.mark.parametrize("match", UNSUPPORTED)
def test_other_tokenizers_are_refused(match: str) -> None:
    with pytest.raises(UnsupportedError, match=match) as caught:
        load_gguf_tokenizer({**small_metadata(), **UNSUPPORTED[match]})
    assert caught.value.hint


def test_a_sentencepiece_model_without_its_parts_is_refused(spaced_directory: Path) -> None:
    metadata = internlm_metadata(spaced_directory)
    with pytest.raises(CheckpointError, match="no score for every token"):
        load_gguf_tokenizer({**metadata, "tokenizer.ggml.scores": np.zeros(3, np.float32)})
    kinds = np.where(metadata["tokenizer.ggml.token_type"] == 2, 1, 1)
    with pytest.raises(CheckpointError, match="SentencePiece refuses"):
        load_gguf_tokenizer({**metadata, "tokenizer.ggml.token_type": kinds})
