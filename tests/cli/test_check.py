"""`ivl check` as a person runs it: what it prints, and its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ivl.cli.main import run

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def directory(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def damage(directory: Path, name: str, value: float) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors[name].fill_(value)
    save_file(tensors, file)


@pytest.mark.parametrize("name", NAMES)
def test_the_official_outputs_agree(name: str, capsys: Captured) -> None:
    directory = GOLDEN / name
    reference = directory / "expected.safetensors"
    assert run(["check", str(directory), "--reference", str(reference), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "weights",
        "image features",
        "logits",
        "greedy tokens",
        "agrees",
    ]
    assert "16 of 16 equal" in lines[3]
    assert "in float32 on cpu" in lines[4]


def test_a_difference_is_an_exit_code_and_a_name(capsys: Captured, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(GOLDEN / NAMES[0], tmp_path / NAMES[0]))
    damage(directory, "mlp1.3.bias", 9.0)
    reference = directory / "expected.safetensors"
    command = ["check", str(directory), "--reference", str(reference), "--device", "cpu"]
    assert run(command) == 2
    out, err = capsys.readouterr()
    assert "DIFFERS" in out
    assert "agrees " not in out
    assert "error: The image features differ from" in err
    assert run([*command, "--tolerance", "1e6"]) == 0
    capsys.readouterr()
    assert run([*command, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [c["agrees"] for c in found["comparisons"]] == [False, False, False]
    assert found["comparisons"][0]["relative_error"] > found["tolerance"] == 1e-3


def test_a_model_alone_is_read_and_run(directory: Path, capsys: Captured) -> None:
    assert run(["check", str(directory), "--device", "cpu", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "all finite" in out
    assert "image tokens" in out
    assert "features and logits finite, in bfloat16 on cpu" in out
    assert run(["check", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["weights"]["tensors"] == len(load_file(directory / "model.safetensors"))


@pytest.fixture
def overflowing(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model that is sound in bfloat16, and in float16 has no number for what follows an `e`: the
    letter's channel is made large, and times itself it is larger than float16 holds."""
    from ivl.prompt.tokenizer_files import load_tokenizer

    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "overflowing"))
    tensors = load_file(directory / "model.safetensors")
    [letter] = load_tokenizer(directory).encode_text("e")
    layer = "language_model.model.layers.1."
    channel = tensors["language_model.model.embed_tokens.weight"]
    channel[:, 0] = 0
    channel[letter, 0] = 60
    for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
        tensors[layer + name][0] = 0
        tensors[layer + name][0, 0] = 2000
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_numbers_too_large_for_float16_are_found_by_real_prompts(
    overflowing: Path, capsys: Captured
) -> None:
    assert run(["check", str(overflowing), "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert "read and 16 written, all finite" in capsys.readouterr().out
    assert run(["check", str(overflowing), "--device", "cpu", "--dtype", "float16"]) == 2
    out, err = capsys.readouterr()
    assert "all finite" in out  # the weights are
    assert "hold NaN or infinity" in err
    assert "hint: Try --dtype bfloat16" in err


def test_an_answer_ends_where_its_numbers_do(overflowing: Path, capsys: Captured) -> None:
    command = ["ask", "See?", "--model", str(overflowing), "--device", "cpu", "--max-tokens", "8"]
    assert run([*command, "--dtype", "bfloat16"]) == 0
    capsys.readouterr()
    assert run([*command, "--dtype", "float16"]) == 2
    err = capsys.readouterr().err
    assert "error: The model has computed numbers that are not finite, in float16" in err
    assert "--dtype bfloat16" in err
    assert "`ivl check`" in err


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "hold NaN"), (0.0, "nothing but zeros")]
)
def test_garbled_weights_are_named(
    value: float, message: str, directory: Path, capsys: Captured
) -> None:
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    damage(directory, name, value)
    assert run(["check", str(directory)]) == 2
    out, err = capsys.readouterr()
    assert "1 tensors damaged" in out
    assert name in out
    assert message in err
    assert run(["check", str(directory), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert name in [*found["weights"]["not_finite"], *found["weights"]["only_zeros"]]


def test_without_a_tokenizer_only_a_reference_can_be_checked(capsys: Captured) -> None:
    assert run(["check", str(GOLDEN / NAMES[0])]) == 2
    assert "holds no tokenizer" in capsys.readouterr().err


def test_the_model_comes_from_the_environment(
    directory: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IVL_MODEL", str(directory))
    assert run(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["directory"] == str(directory)


@pytest.mark.parametrize("layout", ["official", "huggingface"])
def test_what_is_recorded_agrees_when_it_is_checked(
    layout: str, directory: Path, transformers_internvl: Any, tmp_path: Path, capsys: Captured
) -> None:
    if layout == "huggingface":
        from ivl.prompt.tokenizer_files import load_tokenizer

        tokenizer = load_tokenizer(directory)
        oracle = transformers_internvl(vocab_size=tokenizer.vocab_size)
        oracle.config.image_token_id = tokenizer.control("<IMG_CONTEXT>")
        oracle.save_pretrained(directory)
    picture, out = tmp_path / "page.png", tmp_path / "reference.safetensors"
    Image.effect_noise((130, 60), 90).save(picture)
    record = ["check", str(directory), "--record", str(out)]
    assert run([*record, "--image", str(picture), "--question", "Which <IMG_CONTEXT>?"]) == 0
    assert "tiles" in capsys.readouterr().err
    recorded = load_file(out)
    assert recorded["tiles_u8"].shape == (3, 56, 56, 3)
    image_tokens = (recorded["input_ids"] == recorded["input_ids"].mode().values).sum()
    assert image_tokens == 3 * 4
    assert run(["check", str(directory), "--reference", str(out), "--device", "cpu"]) == 0
    assert "16 of 16 equal" in capsys.readouterr().out
    before = out.read_bytes()
    assert run(record) == 2
    assert "there already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_reference_needs_no_picture(directory: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "reference.safetensors"
    assert run(["check", str(directory), "--record", str(out), "-q"]) == 0
    assert load_file(out)["tiles_u8"].dtype == torch.uint8
    assert run(["check", str(directory), "--reference", str(out), "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--record", "a", "--reference", "b"], "compares nothing"),
        (["--image", "a.png"], "--image and --question are for --record"),
        (["--tolerance", "0.1"], "for --reference"),
        (["--reference", "missing.safetensors", "--tolerance", "0"], "above 0"),
        (["--reference", "missing.safetensors"], "no reference file"),
        (["--dtype", "int4"], "no dtype 'int4'"),
        (["--record", "nowhere/out.safetensors"], "no directory nowhere"),
    ],
)
def test_mistakes_are_said(
    options: list[str], message: str, directory: Path, capsys: Captured
) -> None:
    assert run(["check", str(directory), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
