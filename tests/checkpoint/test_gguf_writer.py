"""Written GGUF files: what the package `gguf` reads in them, and what is left after a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from ivl.checkpoint.gguf import GGUFFile, GGUFTensorSpec
from ivl.checkpoint.gguf_writer import GGUFWriter
from ivl.errors import CheckpointError, UnsupportedError
from ivl.quant.formats import FORMATS

METADATA: dict[str, Any] = {
    "general.architecture": "qwen2",
    "t.true": True,
    "t.count": 7,
    "t.large": 2**40,
    "t.negative": -3,
    "t.float": 0.5,
    "t.half": np.uint16(3),
    "t.text": "書生",
    "t.texts": ["", "a", "👍🏽"],
    "t.types": np.array([1, 3], np.int32),
    "t.scores": np.array([0.5, -1.0], np.float32),
}
TYPES = {
    "t.true": "BOOL", "t.count": "UINT32", "t.large": "UINT64", "t.negative": "INT32",
    "t.float": "FLOAT32", "t.half": "UINT16", "t.text": "STRING", "t.texts": "ARRAY STRING",
    "t.types": "ARRAY INT32", "t.scores": "ARRAY FLOAT32",
}  # fmt: skip
TENSORS = [
    *(GGUFTensorSpec(name=f"a.{n}", format=f, shape=(3, 512)) for n, f in FORMATS.items()),
    GGUFTensorSpec(name="patch", format=FORMATS["F32"], shape=(4, 3, 2, 2)),
    GGUFTensorSpec(name="bias", format=FORMATS["F32"], shape=(5,)),
]


def contents() -> dict[str, npt.NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return {t.name: random.integers(0, 256, (t.rows, t.row_bytes), np.uint8) for t in TENSORS}


def files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file()]


def test_written_files_are_read_by_others(tmp_path: Path) -> None:
    path, raw = tmp_path / "model.gguf", contents()
    with GGUFWriter(path, METADATA, TENSORS) as writer:
        for name in reversed(raw):
            if len(raw[name]) > 1:  # in two pieces, the second one first
                writer.write(name, raw[name][1:], first_row=1)
            writer.write(name, raw[name][:1])
        assert not path.exists()
    assert files(tmp_path) == [path]
    oracle = gguf.GGUFReader(path)
    for key, kinds in TYPES.items():
        field = oracle.fields[key]
        assert " ".join(kind.name for kind in field.types) == kinds
        expected = METADATA[key]
        assert field.contents() == (expected.tolist() if hasattr(expected, "tolist") else expected)
    assert [tensor.name for tensor in oracle.tensors] == [tensor.name for tensor in TENSORS]
    for tensor, planned in zip(oracle.tensors, TENSORS, strict=True):
        assert tensor.tensor_type.name == planned.format.name
        assert tuple(tensor.shape.tolist())[::-1] == planned.shape
        assert tensor.data.tobytes() == raw[tensor.name].tobytes()
    ours = GGUFFile(path)
    for name, expected in raw.items():
        assert np.array_equal(ours.read(name), expected)


def test_a_failure_leaves_what_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), GGUFWriter(path, METADATA, TENSORS):
        raise KeyboardInterrupt
    assert files(tmp_path) == [path]
    assert path.read_bytes() == b"before"


def test_a_file_that_lacks_rows_never_gets_its_name(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", METADATA, TENSORS)
    for name, rows in contents().items():
        writer.write(name, rows[1:] if name == "a.Q8_0" else rows)
    with pytest.raises(ValueError, match=r"written once: a\.Q8_0"), writer:
        pass
    assert not files(tmp_path)


def test_rows_must_fit(tmp_path: Path) -> None:
    planned = [GGUFTensorSpec(name="a", format=FORMATS["Q8_0"], shape=(2, 32))]
    with GGUFWriter(tmp_path / "model.gguf", {}, planned) as writer:
        for wrong in (np.zeros((2, 32), np.uint8), np.zeros((3, 34), np.uint8)):
            with pytest.raises(ValueError, match="a takes uint8"):
                writer.write("a", wrong)
        with pytest.raises(ValueError, match="from row 1"):
            writer.write("a", np.zeros((2, 34), np.uint8), first_row=1)
        writer.write("a", np.zeros((2, 34), np.uint8))
    with pytest.raises(UnsupportedError, match="multiple of 256"):
        GGUFWriter(
            tmp_path / "other.gguf",
            {},
            [GGUFTensorSpec(name="a", format=FORMATS["Q4_K"], shape=(2, 32))],
        )


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        GGUFWriter(tmp_path / "none" / "model.gguf", {}, [])
