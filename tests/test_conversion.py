"""`ivl.convert` and `ivl.quantize` as a program calls them: values, and nothing printed."""

from __future__ import annotations

from pathlib import Path

import pytest

import ivl
from ivl.errors import CheckpointError, ConfigError, UnsupportedError


def test_written_files_are_described(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int]] = []
    done = ivl.convert(
        tiny_model_dir, tmp_path, type="F32", progress=lambda *step: steps.append(step)
    )
    text, mmproj = done.files
    assert text.file == tmp_path / "tiny-F32.gguf"
    assert (text.num_bytes, done.resumed_bytes) == (text.file.stat().st_size, 0)
    assert (text.bits_per_weight, list(text.tensors)) == (32, ["F32"])
    assert 0 < steps[-1][0] <= steps[-1][1] <= text.num_bytes + mmproj.num_bytes
    [small] = ivl.quantize(text.file, tmp_path / "small.gguf", "Q8_0").files
    assert small.num_bytes < text.num_bytes
    whole = ivl.quantize(tiny_model_dir, tmp_path / "whole.gguf", "Q8_0", vision="F16")
    assert [one.file.name for one in whole.files] == ["whole.gguf", "mmproj-whole.gguf"]
    assert capsys.readouterr() == ("", "")


def test_what_cannot_be_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="AWQ"):
        ivl.convert(tiny_model_dir, tmp_path, type="awq")
    [text] = ivl.quantize(tiny_model_dir, tmp_path / "a.gguf", "F32").files
    with pytest.raises(ConfigError, match="`vision` is for directories"):
        ivl.quantize(text.file, tmp_path / "b.gguf", "Q8_0", vision="F16")
    with pytest.raises(ConfigError, match="exists"):
        ivl.quantize(tiny_model_dir, text.file, "F32")
    with pytest.raises(CheckpointError, match="a GGUF file already"):
        ivl.convert(text.file, tmp_path)
