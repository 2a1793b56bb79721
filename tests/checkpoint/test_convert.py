"""Converted pairs: what is read back from them, and what is left when a conversion stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivl.checkpoint import convert as convert_module
from ivl.checkpoint.convert import PairOptions, PlannedFile, plan_mmproj, plan_text, write_files
from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_config import read_gguf_config
from ivl.checkpoint.gguf_writer import GGUFWriter
from ivl.checkpoint.names import order_of, text_sources, vision_sources
from ivl.config import ModelConfig, read_config
from ivl.errors import CapacityError, CheckpointError, ConfigError
from ivl.model.build import open_weights
from ivl.prompt.gguf_tokenizer import load_gguf_tokenizer
from ivl.prompt.tokenizer_files import load_tokenizer


def plans(
    directory: Path, out: Path, mix: str = "F32", vision: str = "F32"
) -> tuple[PlannedFile, PlannedFile]:
    model = open_weights(read_config(directory), directory)
    options = PairOptions(mix=mix, vision_type=vision, name="a model")
    text = plan_text(model, directory, out / "text.gguf", options)
    return text, plan_mmproj(model, out / "mmproj.gguf", options)


def convert(directory: Path, out: Path, **options: str) -> tuple[GGUFFile, GGUFFile]:
    text, mmproj = plans(directory, out, **options)
    write_files(text, mmproj, fingerprint="a")
    return GGUFFile(text.path), GGUFFile(mmproj.path)


def as_read(file: GGUFFile, source: Any, config: ModelConfig) -> np.ndarray:
    """A tensor of ours from a file, as the loader makes it."""
    parts = []
    for name in source.names:
        entry = file.tensors[name]
        parts.append(entry.format.dequantize(file.read(name)).reshape(entry.shape))
    whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    order = order_of(source, config)
    return whole if order is None else whole[order]


@pytest.mark.parametrize("which", ["tiny_model_dir", "internlm_dir"])
def test_a_pair_tells_the_same_model(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directory = request.getfixturevalue(which)
    text, mmproj = convert(directory, tmp_path)
    original = open_weights(read_config(directory), directory)
    found = read_gguf_config(text, mmproj)
    expected = original.config
    assert found.decoder == expected.decoder
    assert found.vision == expected.vision
    for name in ("template", "max_tiles", "min_tiles", "use_thumbnail", "ps_version"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.vision is not None
    tables = (text, text_sources(found.decoder)), (mmproj, vision_sources(found.vision, ()))
    for file, table in tables:
        for ours, source in table.items():
            tensor = original.read(ours).float().numpy()
            assert np.array_equal(as_read(file, source, found), tensor), ours
    ours, theirs = load_tokenizer(directory), load_gguf_tokenizer(text.metadata)
    assert theirs.controls == ours.controls
    assert (theirs.bos_id, theirs.stop_ids) == (ours.bos_id, ours.stop_ids)
    sentence = "What is the total of receipt 3? 合計 é 👍🏽 <|im_end|>"
    assert theirs.encode_text(sentence) == ours.encode_text(sentence)


@pytest.mark.parametrize("text", ["qwen2", "llama"])
def test_the_layout_of_transformers_gives_the_same_files(
    text: str, transformers_internvl: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """q, k and v of the tower apart, and Llama's rows, which GGUF files hold in another order."""
    directory = tmp_path / "model"
    vision = "layer_norm" if text == "qwen2" else "rms_norm"
    transformers_internvl(text, vision, vocab_size=400).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, directory)
    config = read_config(directory)
    written, mmproj = convert(directory, tmp_path)
    original = open_weights(config, directory)
    found = read_gguf_config(written, mmproj)
    assert found.decoder == original.config.decoder
    assert found.vision == original.config.vision
    assert found.vision is not None
    tables = (written, text_sources(found.decoder)), (mmproj, vision_sources(found.vision, ()))
    for file, table in tables:
        for ours, source in table.items():
            assert np.array_equal(as_read(file, source, found), original.read(ours).numpy()), ours


def test_bfloat16_and_quantized_tensors_are_what_the_format_gives(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    text, mmproj = convert(tiny_model_dir, tmp_path, mix="Q8_0", vision="BF16")
    original = open_weights(read_config(tiny_model_dir), tiny_model_dir)
    weights = original.read("decoder.layers.1.ffn.down.weight").float().numpy()
    entry = text.tensors["blk.1.ffn_down.weight"]
    assert entry.format.name == "Q8_0"
    expected = entry.format.quantize(weights)
    assert np.array_equal(text.read("blk.1.ffn_down.weight"), expected)
    patch = mmproj.tensors["v.patch_embd.weight"]
    assert (patch.format.name, patch.shape) == ("F32", (48, 3, 14, 14))
    assert mmproj.tensors["v.blk.0.ffn_up.weight"].format.name == "BF16"
    assert mmproj.tensors["v.position_embd.weight"].format.name == "F32"


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Makes the next conversions fail when so many pieces have been written."""

    def arrange(num_pieces: int, error: BaseException) -> None:
        write, left = GGUFWriter.write, [num_pieces]

        def write_or_stop(self: GGUFWriter, *args: Any, **options: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise error
            write(self, *args, **options)

        monkeypatch.setattr(GGUFWriter, "write", write_or_stop)

    return arrange


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("num_pieces", [5, 50, 60])
def test_an_interrupted_conversion_is_gone_on_with(
    num_pieces: int,
    tiny_model_dir: Path,
    tmp_path: Path,
    stop_after: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the projector's file, and in the decoder's."""
    whole = tmp_path / "whole"
    whole.mkdir()
    convert(tiny_model_dir, whole)
    stop_after(num_pieces, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(tiny_model_dir, tmp_path)
    assert "text.gguf" not in names(tmp_path)
    monkeypatch.undo()
    pieces: list[str] = []
    write = GGUFWriter.write

    def count(self: GGUFWriter, name: str, *args: Any, **options: Any) -> None:
        pieces.append(name)
        write(self, name, *args, **options)

    monkeypatch.setattr(GGUFWriter, "write", count)
    convert(tiny_model_dir, tmp_path)
    files = [GGUFFile(whole / name) for name in ("text.gguf", "mmproj.gguf")]
    total = sum(len(file.tensors) for file in files)
    assert len(pieces) == total - num_pieces
    assert names(tmp_path) == {"text.gguf", "mmproj.gguf"}
    for name in names(tmp_path):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_another_input_is_begun_anew(
    tiny_model_dir: Path, tmp_path: Path, stop_after: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stop_after(60, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(tiny_model_dir, tmp_path)
    monkeypatch.undo()
    text, mmproj = plans(tiny_model_dir, tmp_path)
    assert write_files(text, mmproj, fingerprint="another") == 0
    with pytest.raises(ConfigError, match=r"text\.gguf exists"):
        write_files(text, mmproj, fingerprint="another")


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "journal"])
def test_what_does_not_fit_is_written_again(
    damage: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    stop_after: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, _ = plans(tiny_model_dir, tmp_path)
    stop_after(20, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_files(text, None, fingerprint="a")
    monkeypatch.undo()
    partial = tmp_path / ".text.gguf.unfinished.partial"
    journal = partial.with_name(partial.name + ".journal")
    content = bytearray(partial.read_bytes())
    if damage == "shorter":
        partial.write_bytes(content[: len(content) // 2])
    elif damage == "other bytes":
        content[-10] ^= 0xFF
        partial.write_bytes(content)
    else:
        journal.write_bytes(b'{"header": 1}\n')
    assert write_files(text, None, fingerprint="a") == 0
    assert GGUFFile(text.path).tensors.keys() == {t.name for t in text.planned}


def test_a_full_disk_is_told_before_anything_is_written(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CapacityError, match="free") as caught:
        convert(tiny_model_dir, tmp_path)
    assert caught.value.hint
    assert names(tmp_path) == set()


def test_a_disk_that_fills_up_leaves_no_file_under_the_name(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, left = GGUFWriter._put, [60]

    def put_or_fail(self: GGUFWriter, offset: int, content: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise self._failed(OSError(28, "No space left on device"))
        put(self, offset, content)

    monkeypatch.setattr(GGUFWriter, "_put", put_or_fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        convert(tiny_model_dir, tmp_path)
    assert "text.gguf" not in names(tmp_path)


def test_two_conversions_at_once_do_not_mix(tiny_model_dir: Path, tmp_path: Path) -> None:
    text, _ = plans(tiny_model_dir, tmp_path)
    writer = text.writer("a")
    with pytest.raises(CheckpointError, match="Another program"):
        text.writer("a")
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert names(tmp_path) == set()


def test_memory_is_that_of_a_few_pieces(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of 48 MB in float32, converted with pieces of 0.5 MB."""
    import tracemalloc

    from ivl.checkpoint import gguf_writer
    from ivl.checkpoint.gguf import GGUFTensorSpec
    from ivl.checkpoint.gguf_writer import TensorRows, write_tensors
    from ivl.quant.formats import find_format

    monkeypatch.setattr(gguf_writer, "PIECE_WEIGHTS", 1 << 17)
    planned = GGUFTensorSpec(name="a", format=find_format("Q8_0"), shape=(12288, 1024))
    rows = TensorRows(
        planned=planned, rows=lambda start, stop: np.ones((stop - start, 1024), np.float32)
    )
    tracemalloc.start()
    with GGUFWriter(tmp_path / "a.gguf", {}, [planned]) as writer:
        write_tensors(writer, [rows])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000
