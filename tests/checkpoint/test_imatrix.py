"""Importance matrices: both of llama.cpp's layouts, what is measured, and whose they are."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from ivl.checkpoint.gguf import GGUFTensorSpec
from ivl.checkpoint.imatrix import read_imatrix, write_imatrix
from ivl.errors import CheckpointError
from ivl.quant.formats import find_format

SUMS = {
    "blk.0.ffn_up.weight": np.array([2.0, 4.0, 0.0, 8.0], np.float32),
    "v.blk.0.ffn_up.weight": np.array([1.0, 1.0], np.float32),
}
COUNTS = {"blk.0.ffn_up.weight": 4, "v.blk.0.ffn_up.weight": 2}


def write(path: Path) -> Path:
    write_imatrix(path, SUMS, COUNTS, datasets=["pages"], num_chunks=3, chunk_tokens=512)
    return path


def dat(path: Path, calls: int = 5) -> Path:
    """The older layout, as llama-imatrix writes it: means times calls."""
    name, values = b"blk.0.ffn_up.weight", SUMS["blk.0.ffn_up.weight"] / 4
    content = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", calls, 4)
    content += (values * calls).astype("<f4").tobytes()
    path.write_bytes(content + struct.pack("<ii", calls, 5) + b"pages")
    return path


def test_the_package_gguf_reads_what_is_written(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(tmp_path / "imatrix.gguf"))
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["pages"]
    assert reader.fields["imatrix.chunk_count"].contents() == 3
    found = {tensor.name: tensor.data.ravel().tolist() for tensor in reader.tensors}
    assert found["blk.0.ffn_up.weight.in_sum2"] == [2.0, 4.0, 0.0, 8.0]
    assert found["blk.0.ffn_up.weight.counts"] == [4.0]


def test_both_layouts_mean_the_same(tmp_path: Path) -> None:
    new, old = read_imatrix(write(tmp_path / "a.gguf")), read_imatrix(dat(tmp_path / "a.dat"))
    name = "blk.0.ffn_up.weight"
    assert new.means[name].tolist() == [0.5, 1.0, 0.0, 2.0]
    assert np.allclose(old.means[name], new.means[name])
    assert old.num_chunks == 5
    assert old.datasets == new.datasets == ["pages"]


@pytest.mark.parametrize("length", [0, 3, 4, 20, 30, 40])
def test_cut_off_files_are_refused(length: int, tmp_path: Path) -> None:
    path = dat(tmp_path / "a.dat")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="importance matrix") as caught:
        read_imatrix(path)
    assert caught.value.hint


def test_the_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    matrix = read_imatrix(write(tmp_path / "a.gguf"))

    def planned(name: str, columns: int) -> GGUFTensorSpec:
        return GGUFTensorSpec(name=name, format=find_format("F32"), shape=(2, columns))

    assert set(matrix.for_tensors([planned("blk.0.ffn_up.weight", 4)])) == {"blk.0.ffn_up.weight"}
    with pytest.raises(CheckpointError, match="4 values"):
        matrix.for_tensors([planned("blk.0.ffn_up.weight", 8)])
    more = [planned("blk.0.ffn_up.weight", 4), planned("blk.1.ffn_up.weight", 4)]
    with pytest.raises(CheckpointError, match=r"nothing for 1 matrices.*blk\.1"):
        matrix.for_tensors(more)
    with pytest.raises(CheckpointError, match="nothing for any"):
        matrix.for_tensors([planned("blk.7.ffn_up.weight", 4)])
