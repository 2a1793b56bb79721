"""Models from GGUF pairs compute what the safetensors that they were made of compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ivl.cli.main import run
from ivl.errors import CheckpointError, IvlError
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.model.source import open_source

GOLDEN = Path(__file__).parents[1] / "golden"
DEMO = "demo"


def files(directory: Path) -> tuple[Path, Path]:
    """The text model's and the projector's."""
    mmproj = next(directory.glob("mmproj-*.gguf"))
    return next(path for path in directory.glob("*.gguf") if path != mmproj), mmproj


def test_the_demo_reads_from_a_pair(demo_pair: Path) -> None:
    """Matrices stay quantized, and the answer stays near the original's."""
    import ivl
    from ivl.measure.metrics import edit_distance

    model = ivl.load(demo_pair)
    network = model.engine.model
    assert isinstance(network.decoder.layers[0].ffn.down, QuantizedLinear)
    assert isinstance(network.decoder.embed, QuantizedEmbedding)
    image = Path(__file__).parents[2] / "samples" / "receipt.png"
    original = ivl.load(DEMO, dtype="float32").read(image, max_tokens=60).text
    read = model.read(image, max_tokens=60).text
    assert edit_distance(original, read) < 0.4 * len(original)


def test_either_file_or_the_directory_names_the_model(demo_pair: Path) -> None:
    text, mmproj = files(demo_pair)
    for source in (open_source(demo_pair), open_source(text), open_source(text, mmproj)):
        assert source.config.vision is not None
        assert source.tokenizer().vocab_size == source.config.decoder.vocab_size


def test_the_files_the_wrong_way_round(demo_pair: Path) -> None:
    text, mmproj = files(demo_pair)
    with pytest.raises(CheckpointError, match="wrong way round"):
        open_source(mmproj, text)
    with pytest.raises(CheckpointError, match="language model"):
        open_source(text, text)


def test_two_projectors_are_for_the_person_to_choose(demo_pair: Path, tmp_path: Path) -> None:
    text, mmproj = files(demo_pair)
    shutil.copy(text, tmp_path / "text.gguf")
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(mmproj, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 projectors: a\.gguf, b\.gguf") as caught:
        open_source(tmp_path / "text.gguf")
    assert "`mmproj`" in caught.value.hint
    assert open_source(tmp_path / "text.gguf", tmp_path / "b.gguf").config.vision is not None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error(demo_pair: Path, tmp_path: Path, share: float) -> None:
    text, mmproj = files(demo_pair)
    raw = text.read_bytes()
    (tmp_path / "text.gguf").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(IvlError):
        open_source(tmp_path / "text.gguf", mmproj)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="pickle") as caught:
        open_source(file)
    assert "safetensors" in caught.value.hint


def test_the_command_line_takes_pairs(demo_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, mmproj = files(demo_pair)
    assert run(["info", str(text), "--mmproj", str(mmproj)]) == 0
    out = capsys.readouterr().out
    assert "Q4_K" in out
    assert "Q8_0" in out
    assert run(["check", str(text)]) == 0
    assert "all finite" in capsys.readouterr().out
    assert run(["check", DEMO, "--mmproj", str(mmproj)]) == 2
    assert "leave it out" in capsys.readouterr().err
