"""`ivl check --against`: what it says of good and of damaged copies, and of what is no copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ivl.cli.main import run
from ivl.quant.formats import FORMATS

Captured = pytest.CaptureFixture[str]
Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures with a truth, and none of them alike."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, picture in {
        "noise": Image.effect_noise((120, 60), 90),
        "ramp": Image.linear_gradient("L").resize((60, 60)),
    }.items():
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name.upper()} 12.50\nTotal\n", "utf-8")
    return folder


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Callable[[Change], str]:
    """Makes a changed copy of the tiny model."""

    def make(change: Change) -> str:
        directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")
        return str(directory)

    return make


def check(model: str, original: str | Path, data: Path, *options: str) -> list[str]:
    return [
        *("check", model, "--against", str(original), "--data", str(data)),
        *("--device", "cpu", "--dtype", "float32", *options),
    ]


def rounded(format_: str) -> Change:
    """All matrices of the decoder, as a quantized file would hold them."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and name.startswith("language_model"):
                kind = FORMATS[format_]
                raw = kind.quantize(tensor.numpy())
                tensors[name] = torch.from_numpy(kind.dequantize(raw).copy())

    return change


def test_a_model_is_its_own_equal(tiny_model_dir: Path, data: Path, capsys: Captured) -> None:
    assert run(check(str(tiny_model_dir), tiny_model_dir, data, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    fidelity = found["fidelity"]
    assert found["ok"] is True
    assert found["verdict"]["name"] == "indistinguishable"
    assert fidelity["num_samples"] == 2
    # NOISE 12.50, Total, a line break between them, and the end of the turn
    assert fidelity["num_positions"] == 18 + 17
    assert fidelity["kl_max"] == 0
    assert fidelity["top1_agreement"] == 1
    assert fidelity["cosine_worst"] == pytest.approx(1)
    assert fidelity["characters_differ"] == 0
    assert fidelity["perplexity_ours"] == fidelity["perplexity_theirs"] > 1
    assert fidelity["error_rate_ours"] == fidelity["error_rate_theirs"] > 0.5
    assert found["answers"][0]["original"] == found["answers"][0]["model"] != ""


def test_fewer_bits_are_farther_away(
    tiny_model_dir: Path,
    data: Path,
    copy: Callable[[Change], str],
    capsys: Captured,
    tmp_path: Path,
) -> None:
    divergences = []
    for format_ in ("Q8_0", "Q5_0", "Q4_0"):
        model = copy(rounded(format_))
        code = run(check(model, tiny_model_dir, data, "--json", "--no-answers"))
        found = json.loads(capsys.readouterr().out)
        assert code == (2 if found["verdict"]["name"] == "damaged" else 0)
        assert found["fidelity"]["characters_differ"] is None
        # Only the decoder was rounded.
        assert found["fidelity"]["cosine_worst"] == pytest.approx(1)
        divergences.append(found["fidelity"]["kl_mean"])
        shutil.rmtree(model)
    assert 0 < divergences[0] < divergences[1] / 10
    assert divergences[1] < divergences[2]


def test_one_damaged_layer_is_found(
    tiny_model_dir: Path, data: Path, copy: Callable[[Change], str], capsys: Captured
) -> None:
    model = copy(lambda tensors: _swap_rows(tensors))
    assert run(check(model, tiny_model_dir, data)) == 2
    out, err = capsys.readouterr()
    assert "damaged: this is another model" in out
    assert f"error: {model} is damaged: " in err
    assert "hint: " in err
    assert "became" in out


def _swap_rows(tensors: dict[str, torch.Tensor]) -> None:
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    tensors[name] = 8 * tensors[name].flip(0).contiguous()


def test_a_damaged_tower_is_told_from_a_damaged_decoder(
    tiny_model_dir: Path, data: Path, copy: Callable[[Change], str], capsys: Captured
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["mlp1.3.weight"] = tensors["mlp1.3.weight"].flip(0).contiguous()

    assert run(check(copy(change), tiny_model_dir, data, "--no-answers", "--json")) == 2
    assert json.loads(capsys.readouterr().out)["fidelity"]["cosine_worst"] < 0.5


def test_weights_that_make_nan_are_damaged(
    tiny_model_dir: Path, data: Path, copy: Callable[[Change], str], capsys: Captured
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.norm.weight"].fill_(torch.nan)

    model = copy(change)
    assert run(check(model, tiny_model_dir, data, "--json")) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["fidelity"]["kl_mean"] is None
    assert found["verdict"]["name"] == "damaged"
    assert run(check(str(tiny_model_dir), model, data)) == 2
    assert "The original itself computes NaN" in capsys.readouterr().err


def test_other_pictures_are_seen(tiny_model_dir: Path, data: Path) -> None:
    """The features that are compared are those of the sample: exchanged pictures are far apart."""
    from ivl import api
    from ivl.measure.data import read_data, tokenize_samples
    from ivl.measure.fidelity import compare, keep, summarise

    engine = api.load(tiny_model_dir, device="cpu", dtype="float32").engine
    noise, ramp = tokenize_samples(
        read_data([data]),
        engine.config,
        engine.tokenizer,
        context=engine.context,
        max_tiles=1,
    )
    keep(engine, noise, data / "kept", write_answers=False)
    same = summarise([compare(engine, noise, data / "kept")])
    other = summarise([compare(engine, ramp, data / "kept")])
    assert same.cosine_worst == pytest.approx(1)
    assert other.cosine_worst is not None
    assert other.cosine_worst < 0.99
    assert other.kl_mean > 0


def test_answers_that_nobody_knows_are_the_originals(
    tiny_model_dir: Path, data: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivl.measure.fidelity.MAX_ANSWER_TOKENS", 40)
    for truth in data.glob("*.txt"):
        truth.unlink()
    (data / "prose.txt").write_text("It rained all day. " * 30, "utf-8")
    command = check(str(tiny_model_dir), tiny_model_dir, data, "--max-tiles", "1", "--json")
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fidelity"]["num_samples"] == 3
    assert found["fidelity"]["error_rate_ours"] is None
    assert len(found["answers"]) == 2
    assert len(found["answers"][0]["original"]) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "demo", "--reference", "a"], "three checks"),
        (["--data", "a.png"], "are for --against"),
        (["--no-answers"], "are for --against"),
        (["--against", "demo", "--data", "missing.png"], "no data missing.png"),
        (
            ["--against", "demo"],
            "not the same model: the width of the decoder is 64 here and 256",
        ),
    ],
)
def test_mistakes_are_said(
    options: list[str], message: str, tiny_model_dir: Path, data: Path, capsys: Captured
) -> None:
    # The last one runs the demo, on one page of its own.
    if options == ["--against", "demo"]:
        options = [*options, "--data", str(data / "ramp.png"), "--no-answers"]
    assert run(["check", str(tiny_model_dir), *options, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_another_tokenizer_is_refused(
    tiny_model_dir: Path, data: Path, copy: Callable[[Change], str], capsys: Captured
) -> None:
    model = copy(lambda tensors: None)
    file = Path(model) / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(file.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["T"], vocabulary["N"] = vocabulary["N"], vocabulary["T"]
    file.write_text(json.dumps(tokenizer), "utf-8")
    assert run(check(model, tiny_model_dir, data, "--no-answers")) == 2
    err = capsys.readouterr().err
    assert "The tokenizers differ: 'NOISE 12.50" in err


def test_a_gguf_pair_is_as_far_away_as_the_weights_that_it_holds(
    tiny_model_dir: Path,
    data: Path,
    copy: Callable[[Change], str],
    capsys: Captured,
    tmp_path: Path,
) -> None:
    """Its products are not computed from dequantized weights; the divergence must not show it."""
    pair = tmp_path / "pair"
    command = ["convert", str(tiny_model_dir), str(pair), "--type", "Q4_0", "--vision", "F32"]
    assert run([*command, "--quiet"]) == 0
    [decoder] = (file for file in pair.glob("*.gguf") if not file.name.startswith("mmproj"))

    def all_but_the_head(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["language_model.lm_head.weight"]
        rounded("Q4_0")(tensors)
        kind = FORMATS["Q8_0"]  # llama.cpp's mixes give it so many bits in rows of this length
        raw = kind.quantize(head.numpy())
        tensors["language_model.lm_head.weight"] = torch.from_numpy(kind.dequantize(raw).copy())

    found = []
    for model in (str(decoder), copy(all_but_the_head)):
        capsys.readouterr()
        run(check(model, tiny_model_dir, data, "--no-answers", "--json"))
        found.append(json.loads(capsys.readouterr().out)["fidelity"])
    assert found[0]["kl_mean"] == pytest.approx(found[1]["kl_mean"], rel=2e-2)
    assert found[0]["kl_mean"] > 1e-4
    assert found[0]["cosine_worst"] == pytest.approx(1)
