"""Files that are missing, damaged or contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers

from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.prompt.tokenizer import Tokenizer
from ivl.prompt.tokenizer_files import load_tokenizer


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A byte-level tokenizer without merges."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    write_json(tmp_path / "vocab.json", vocab)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    write_json(tmp_path / "added_tokens.json", {"<img>": 256, "</img>": 257})
    assert load_tokenizer(tmp_path).vocab_size == 258
    return tmp_path


def test_a_missing_control_token_names_the_nearest(qwen: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="<IMG_CONTEXT>"):
        qwen.control("<IMG_CONTEX>")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="not a directory"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "vocab.json"])
def test_broken_json(small: Path, name: str) -> None:
    (small / name).write_text('{"half": ')
    with pytest.raises(CheckpointError, match=f"{name} cannot be read as JSON"):
        load_tokenizer(small)


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("added_tokens.json", {"<img>": 256, "</img>": 256}, "256"),
        ("added_tokens.json", {"<img>": 10}, "which the vocabulary gives to"),
        ("added_tokens.json", {"<img>": "256"}, "has the id '256'"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"300": {"content": "<img>"}}},
            "another file",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"256": {}}}, "without content"),
        ("vocab.json", {"a": 0, "b": 1}, "lacks 254 of the 256 bytes"),
        ("vocab.json", {"a": 0, "b": 0}, "share an id"),
        ("vocab.json", {}, "no vocabulary"),
        ("vocab.json", {"a": 1.5}, "the id 1.5"),
    ],
)
def test_contradictions(small: Path, file_name: str, content: Any, message: str) -> None:
    write_json(small / file_name, content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(small)


def test_defects_of_merges(small: Path) -> None:
    (small / "merges.txt").write_text("a b\n")
    with pytest.raises(CheckpointError, match="merges 'a' and 'b'"):
        load_tokenizer(small)
    (small / "merges.txt").write_text("a b c\n")
    with pytest.raises(CheckpointError, match="no pair"):
        load_tokenizer(small)
    (small / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        load_tokenizer(small)


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"add_eos_token": True},
        {"added_tokens_decoder": {"256": {"content": "<img>", "lstrip": True}}},
    ],
)
def test_unsupported_kinds(small: Path, config: dict[str, Any]) -> None:
    write_json(small / "tokenizer_config.json", config)
    with pytest.raises(UnsupportedError):
        load_tokenizer(small)


@pytest.mark.parametrize(
    ("section", "value", "error"),
    [
        ("model", {"type": "WordPiece", "vocab": {}}, UnsupportedError),
        ("decoder", {"type": "WordPiece"}, UnsupportedError),
        ("decoder", None, UnsupportedError),
        ("normalizer", {"type": "Lowercase"}, UnsupportedError),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{}]}, UnsupportedError),
        ("pre_tokenizer", {"type": "Split", "behavior": "Isolated"}, CheckpointError),
        ("model", {"type": "BPE", "vocab": {"a": 0}}, CheckpointError),
        ("added_tokens", [{"id": 5}], CheckpointError),
        ("added_tokens", [{"id": -5, "content": "<img>"}], CheckpointError),
    ],
)
def test_defects_of_tokenizer_json(
    fallback_core: tokenizers.Tokenizer,
    tmp_path: Path,
    section: str,
    value: Any,
    error: type[Exception],
) -> None:
    content = json.loads(fallback_core.to_str())
    write_json(tmp_path / "tokenizer.json", content | {section: value})
    with pytest.raises(error):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 200, -10])
def test_a_damaged_sentencepiece_model(plain_directory: Path, keep: int) -> None:
    path = plain_directory / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        load_tokenizer(plain_directory)


def test_a_git_lfs_pointer_is_no_model(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "tokenizer.model").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is a Git LFS pointer"):
        load_tokenizer(tmp_path)


def test_an_added_token_cannot_take_over_a_byte(plain_directory: Path) -> None:
    path = plain_directory / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    write_json(plain_directory / "added_tokens.json", {"<new>": processor.piece_to_id("<0x41>")})
    with pytest.raises(CheckpointError, match="a single byte"):
        load_tokenizer(plain_directory)
