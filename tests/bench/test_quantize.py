"""The measurement of quantizing measures the same work on both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.llama_cpp import MISSING, find_program
from bench.quantize import IVL, report_errors, timed_file, write_random
from ivl.checkpoint.gguf import GGUFFile
from ivl.family import find
from ivl.quant.mixes import MixContext, decoder_tensors, tensor_type


def test_the_file_has_the_shapes_of_the_size_and_the_types_of_the_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = find("1b")
    assert size is not None
    decoder = replace(size.decoder, num_layers=2, vocab_size=320, intermediate_size=512)
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    write_random(decoder, source)
    assert timed_file(source, [*IVL, "quantize", source, out, "Q4_K_M", "--quiet"]) > 0
    context, shapes = MixContext.of(decoder), decoder_tensors(decoder)
    found = {name: (e.shape, e.format.name) for name, e in GGUFFile(out).tensors.items()}
    assert found == {
        name: (shape, tensor_type("Q4_K_M", name, shape, context)) for name, shape in shapes.items()
    }
    report_errors(source, out, out)
    printed = capsys.readouterr().out
    assert "error Q4_K" in printed
    assert printed.count("ratio 1.0000") == len(printed.splitlines())


def test_without_llama_cpp_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IVL_LLAMA_CPP", raising=False)
    assert find_program("llama-quantize") is None
    assert "IVL_LLAMA_CPP" in MISSING
