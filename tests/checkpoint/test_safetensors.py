"""Files of weights, sound and damaged in every way that a download or a stranger can."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ivl.checkpoint.safetensors import INDEX_NAME, SafetensorsDirectory, read_header
from ivl.errors import CheckpointError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(4, dtype=torch.bfloat16),
    "c": torch.tensor(7.0, dtype=torch.float16),
    "d": torch.zeros(0, 5),
}


def write(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file from a header, as JSON or as bytes, that may claim another length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def entry(begin: int, end: int, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_is_read_as_it_was_written(file: Path) -> None:
    save_file(TENSORS, file, metadata={"format": "pt"})
    directory = SafetensorsDirectory(file.parent)
    assert directory.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert directory.tensors[name].shape == tuple(tensor.shape)
        read = directory.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def shard(directory: Path) -> None:
    save_file({"a": TENSORS["a"]}, directory / "part-1.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, directory / "part-2.safetensors")


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_are_read_as_one(indexed: bool, tmp_path: Path) -> None:
    shard(tmp_path)
    if indexed:
        write_index(
            tmp_path,
            {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-2.safetensors"},
        )
    directory = SafetensorsDirectory(tmp_path)
    assert sorted(directory.tensors) == ["a", "b", "c"]
    for name in ("c", "a", "b", "a"):
        assert torch.equal(directory.read(name), TENSORS[name])


def test_files_that_the_index_does_not_name_are_left_alone(tmp_path: Path) -> None:
    shard(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    write_index(tmp_path, {"a": "part-1.safetensors", "b": "part-2.safetensors"})
    assert SafetensorsDirectory(tmp_path).tensors["a"].shape == (2, 3)


def test_a_whole_file_comes_before_an_old_index(tmp_path: Path) -> None:
    """As transformers has it."""
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    write_index(tmp_path, {"a": "part-1.safetensors"})
    assert SafetensorsDirectory(tmp_path).tensors["a"].shape == (1,)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors.incomplete", "not finished"),
        (".cache/huggingface/download/abc.incomplete", "not finished"),
        ("model.safetensors.part", "not finished"),
        ("checkpoint-500/model.safetensors", "checkpoint-500: give that directory"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "training run"),
        ("README.md", "config.json, tokenizer files"),
    ],
)
def test_where_the_weights_may_be_instead(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors") as caught:
        SafetensorsDirectory(tmp_path)
    assert says in caught.value.hint


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    shard(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "part-3.safetensors")
    with pytest.raises(CheckpointError, match=r"a is both in part-1.*part-3") as caught:
        SafetensorsDirectory(tmp_path)
    assert "two downloads" in caught.value.hint


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path)
    (tmp_path / "part-2.safetensors").unlink()
    write_index(tmp_path, {"a": "part-1.safetensors", "b": "part-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of its 2 .* part-2\.safetensors"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "..", "sub/part.safetensors", 7, "a\0b"]
)
def test_an_index_reaches_no_other_directory(name: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    write_index(model, {"a": name})
    with pytest.raises(CheckpointError, match=r"plain file name|lacks 1"):
        SafetensorsDirectory(model)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}', "[" * 99999]
)
def test_a_broken_index_is_refused(content: str, tmp_path: Path) -> None:
    shard(tmp_path)
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(CheckpointError, match="no index"):
        SafetensorsDirectory(tmp_path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(CheckpointError, match=r"as pickle \(pytorch_model\.bin\)") as caught:
        SafetensorsDirectory(tmp_path)
    assert "run code" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pytorch_model.bin"]


def test_an_empty_directory_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        SafetensorsDirectory(tmp_path)


def test_every_truncation_is_found_before_anything_is_read(file: Path) -> None:
    save_file(TENSORS, file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"truncated|no safetensors file"):
            read_header(file)


def test_bytes_behind_the_end_are_found(file: Path) -> None:
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes() + b"<html>")
    with pytest.raises(CheckpointError, match="6 bytes more"):
        read_header(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"<html>Too many requests</html>", "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b"\xff\xff", "no JSON"),
        (b"[]", "no JSON object"),
        ({"a": entry(0, 8, [3])}, "does not fit its shape"),
        ({"a": entry(0, 8, [-1, -2])}, "does not fit its shape"),
        ({"a": entry(8, 0, [-2])}, "does not fit its shape"),
        ({"a": entry(0, 8, [2.0])}, "does not fit its shape"),
        ({"a": entry(0, 8, ["2"])}, "does not fit its shape"),
        ({"a": entry(0, 0, [0, 10**30])}, "does not fit its shape"),
        ({"a": entry(0, 8, [True, 2])}, "does not fit its shape"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, "b overlaps"),
        ({"a": entry(4, 12, [2])}, "a is not where it should be"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, "b is not where"),
        ({"a": entry(0, 400, [100])}, "truncated: 388 of 400"),
        ({"a": entry(0, 12, [3], "F7")}, "type F7"),
        ({"a": entry(0, 12, [3], ["F32"])}, "type"),
        ({"a": {"dtype": "F32", "shape": [3]}}, "damaged"),
        ({"a": entry(0, 12, None)}, "damaged"),
        ({"a": 3}, "damaged"),
    ],
)
def test_a_lying_header_is_refused(header: Any, message: str, file: Path) -> None:
    write(file, header, bytes(12))
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


@pytest.mark.parametrize("length", [13, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_to_be_huge_is_not_read(length: int, file: Path) -> None:
    write(file, b"{}", bytes(10), length=length)
    with pytest.raises(CheckpointError, match="truncated, or no safetensors"):
        read_header(file)


def test_a_file_that_changes_between_header_and_data_is_an_error(file: Path) -> None:
    save_file(TENSORS, file)
    directory = SafetensorsDirectory(file.parent)
    file.write_bytes(b"gone")
    with pytest.raises(CheckpointError, match="cannot be read"):
        directory.read("a")


def read_all(directory: Path) -> None:
    files = SafetensorsDirectory(directory)
    for name in files.tensors:
        files.read(name)


quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALID = json.dumps({"a": entry(0, 8, [2]), "__metadata__": {"k": "v"}}).encode()
JSON_VALUES: Callable[[Any], Any] = lambda leaves: st.recursive(  # noqa: E731
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner)
)
LEAVES = st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats() | st.text(max_size=5)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16"]) | LEAVES,
        "shape": st.lists(st.integers(-2, 4), max_size=3) | JSON_VALUES(LEAVES),
        "data_offsets": st.lists(st.integers(-2, 16), min_size=2, max_size=2) | JSON_VALUES(LEAVES),
    }
)


@quick
@given(raw=st.binary(max_size=80))
@example(raw=b"")
def test_any_bytes_are_read_or_refused(raw: bytes, file: Path) -> None:
    file.write_bytes(raw)
    refused_or_read(file.parent)


@quick
@given(at=st.integers(0, len(VALID) - 1), byte=st.integers(0, 255), tail=st.binary(max_size=12))
def test_any_flipped_byte_is_read_or_refused(at: int, byte: int, tail: bytes, file: Path) -> None:
    header = bytearray(VALID)
    header[at] = byte
    write(file, bytes(header), tail)
    refused_or_read(file.parent)


@quick
@given(header=st.dictionaries(st.text(max_size=4), FIELDS | JSON_VALUES(LEAVES), max_size=3))
def test_any_header_is_read_or_refused(header: dict[str, Any], file: Path) -> None:
    write(file, header, bytes(16))
    refused_or_read(file.parent)


def refused_or_read(directory: Path) -> None:
    """The one thing that may come out of a bad file is a CheckpointError."""
    try:
        read_all(directory)
    except CheckpointError as error:
        assert str(directory) in error.message  # noqa: PT017
