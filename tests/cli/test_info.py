"""`ivl info`: true facts, told without loading or fetching anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from ivl.cli.main import run
from ivl.family import find
from ivl.kernels import cpu

GOLDEN = Path(__file__).parents[1] / "golden"
Output = pytest.CaptureFixture[str]


def facts_of(model: str, capsys: Output) -> dict:
    assert run(["info", model, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("size", "parameters", "kv_bytes", "longest_context"),
    [
        # Counts of the published safetensors files; 2 x layers x kv heads x head width x 2 bytes.
        ("1b", 0.938e9, 12_288, 32_768),
        ("2b", 2.21e9, 98_304, 65_536),
        ("78b", 78.4e9, 327_680, 32_768),
        ("OpenGVLab/InternVL2_5-4B", 3.71e9, 36_864, 32_768),
    ],
)
def test_a_size_is_known_without_a_network(
    size: str,
    parameters: float,
    kv_bytes: int,
    longest_context: int,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    facts = facts_of(size, capsys)
    assert facts["parameters"]["total"] == pytest.approx(parameters, rel=0.005)
    assert facts["kv_bytes_per_token"] == kv_bytes
    assert (facts["context"], facts["longest_context"]) == (32_768, longest_context)
    assert facts["images"] is True
    assert facts["files"] is None
    # Weights of two bytes, the cache, and something for the rest.
    least = 2 * facts["parameters"]["total"] + 8192 * kv_bytes
    assert least < facts["memory_bytes"] < 1.2 * least + 2**30
    assert run(["info", size]) == 0
    assert "not downloaded" in capsys.readouterr().out


def test_licences_name_the_terms_of_the_decoder(capsys: Output) -> None:
    assert "Qwen" in facts_of("78b", capsys)["licence"]
    assert "not for commercial use" in facts_of("4b", capsys)["licence"]


def test_a_directory_is_read_from_its_headers(capsys: Output) -> None:
    directory = GOLDEN / "internvit-6b-like_internlm2"
    facts = facts_of(str(directory), capsys)
    with safe_open(directory / "model.safetensors", framework="np") as file:
        names = list(file.keys())
        counts = {name: file.get_tensor(name).size for name in names}
    assert facts["parameters"]["total"] == sum(counts.values())
    assert facts["parameters"]["projector"] == sum(
        count for name, count in counts.items() if name.startswith("mlp1.")
    )
    assert facts["files"]["stored_bytes"] == {"F32": 4 * sum(counts.values())}
    assert facts["files"]["size_bytes"] == (directory / "model.safetensors").stat().st_size
    assert facts["size"] is None
    assert (facts["tile_px"], facts["tokens_per_tile"]) == (448, 256)
    assert run(["info", str(directory)]) == 0
    output = capsys.readouterr().out
    assert "F32" in output
    assert "its files do not state one" in output


def test_the_licence_of_a_model_card_is_shown(
    tiny_model_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (directory / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-4.0\n---\n# A model\n")
    assert facts_of(str(directory), capsys)["licence"] == "cc-by-4.0"


def test_a_text_only_model_says_so(tmp_path: Path, capsys: Output) -> None:
    golden = GOLDEN / "internvit-300m-like_qwen2"
    config = json.loads((golden / "config.json").read_text())["llm_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(golden / "model.safetensors", tmp_path)
    assert facts_of(str(tmp_path), capsys)["images"] is False
    assert run(["info", str(tmp_path)]) == 0
    assert "no, it is a text-only model" in capsys.readouterr().out


def test_a_missing_shard_is_named(tiny_model_dir: Path, tmp_path: Path, capsys: Output) -> None:
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for command in (["info", str(directory)], ["ask", "Hi", "--model", str(directory)]):
        assert run(command) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert "model-00002-of-00002.safetensors" in output.err
        assert "hint: " in output.err


@pytest.mark.parametrize("model", ["nonesuch", "owner/nonesuch"])
def test_a_model_that_is_not_here(
    model: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(["info", model]) == 2
    output = capsys.readouterr()
    assert model in output.err
    assert "hint: " in output.err
    assert "reached" not in output.err


def test_the_table_has_the_whole_family(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivl.cli.info.available_memory_bytes", lambda: 10 * 2**30)
    assert run(["info"]) == 0
    rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    fits = {row.split()[0]: "yes" in row.split() for row in rows[1:]}
    sizes = {"1b": True, "2b": True, "4b": True, "8b": False} | dict.fromkeys(
        ["26b", "38b", "78b"], False
    )
    assert fits.items() >= sizes.items()


def test_the_machine(capsys: Output) -> None:
    import torch

    assert run(["info", "--machine", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert run(["info", "--machine"]) == 0
    assert facts["processor"] in capsys.readouterr().out
    assert run(["info", "--machine", "1b"]) == 2


def test_plan_uses_at_once_the_bandwidth_that_info_shows(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(["info", "--machine", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["read_bytes_per_s"]
    for device in ([], ["--device", "cpu"], ["--device", "cpu 512GB"]):
        assert run(["plan", "1b", "--json", "--memory", "64GB", *device]) == 0
        record = json.loads(capsys.readouterr().out)
        hosts = [d for d in record["devices"] if "info --machine" in d["source"]]
        assert [host["bandwidth_bytes_per_s"] for host in hosts] == [shown] or not device
    assert record["speed"]["tokens_per_s"]["confidence"] == "measured here"
    assert "ivl info --machine" in record["speed"]["tokens_per_s"]["source"]


def copy_of_shapes(size_name: str, directory: Path, **top: object) -> Path:
    """A directory with the config.json of a size, and one small tensor: enough to be told of."""
    size = find(size_name)
    assert size is not None
    vision, decoder = size.vision, size.decoder
    raw = {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat",
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
        "max_dynamic_patch": 12, "min_dynamic_patch": 1, "ps_version": "v2", "select_layer": -1,
        "template": "internvl2_5", "torch_dtype": "bfloat16", "use_thumbnail": True,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
            "hidden_size": decoder.hidden_size, "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers, "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads, "vocab_size": decoder.vocab_size,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "hidden_act": "silu", "_name_or_path": "Qwen/Qwen2.5-0.5B",
        },
        "vision_config": {
            "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b",
            "hidden_size": vision.hidden_size, "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers, "num_attention_heads": vision.num_heads,
            "image_size": 448, "patch_size": 14, "norm_type": "layer_norm", "qkv_bias": True,
            "qk_normalization": False, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        },
        **top,
    }  # fmt: skip
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(raw))
    save_file({"mlp1.0.weight": np.zeros(4, np.float32)}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(
    ("top", "card", "name", "licence"),
    [
        ({}, None, None, None),
        ({"_name_or_path": "OpenGVLab/InternVL3-1B"}, None, "OpenGVLab/InternVL3-1B", None),
        ({"_name_or_path": "/mnt/work_dirs/exp/checkpoint-9"}, None, None, None),
        (
            {"_name_or_path": "OpenGVLab/InternVL2_5-1B"},
            "---\nlicense: cc-by-nc-4.0\n---\n# Invoices-1B\n",
            "Invoices-1B", "cc-by-nc-4.0",
        ),
        (
            {},
            "---\r\nlicense: other # see below\r\nlicense_name: \"qwen\"\r\n---\r\n"
            "## Introduction\r\n",
            None, "qwen",
        ),
        ({}, "---\nlicense:\n- mit\n- apache-2.0\n---\n", None, "mit, apache-2.0"),
    ],
)  # fmt: skip
def test_equal_shapes_are_no_name_and_no_licence(
    top: dict, card: str | None, name: str | None, licence: str | None, tmp_path: Path,
    capsys: Output,
) -> None:  # fmt: skip
    """InternVL2-1B, InternVL3-1B and all that was trained from them have the shapes of 2.5's 1B."""
    directory = copy_of_shapes("1b", tmp_path / "model", **top)
    if card is not None:
        (directory / "README.md").write_bytes(card.encode())
    facts = facts_of(str(directory), capsys)
    assert (facts["size"], facts["hub_id"]) == (None, None)
    assert (facts["stated_name"], facts["licence"]) == (name, licence)
    assert facts["shapes_of"] == "InternVL2_5-1B"
    assert facts["decoder"] == "Qwen/Qwen2.5-0.5B"
    assert run(["info", str(directory)]) == 0
    out = capsys.readouterr().out
    assert "the shapes of InternVL2_5-1B" in out
    assert out.count("InternVL2_5") == 1
    assert (licence or "not stated") in out
    assert "Apache" not in out


def test_a_member_of_the_family_says_that_it_is_one(tmp_path: Path, capsys: Output) -> None:
    directory = copy_of_shapes("1b", tmp_path / "x", _name_or_path="OpenGVLab/InternVL2_5-1B")
    (directory / "LICENSE").write_text("MIT License\n\nCopyright (c) 2024 OpenGVLab\n")
    facts = facts_of(str(directory), capsys)
    assert (facts["size"], facts["hub_id"]) == ("1b", "OpenGVLab/InternVL2_5-1B")
    assert (facts["licence"], facts["licence_source"]) == ("MIT License", "LICENSE")


def test_a_conversion_goes_on_saying_what_its_source_says(
    tiny_model_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    source = shutil.copytree(tiny_model_dir, tmp_path / "folder")
    (source / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# Tiny Reader\n")
    assert run(["convert", str(source), str(tmp_path / "pair"), "--type", "Q8_0", "--quiet"]) == 0
    [text] = (f for f in (tmp_path / "pair").glob("*.gguf") if not f.name.startswith("mmproj"))
    capsys.readouterr()
    facts = facts_of(str(text), capsys)
    assert (facts["stated_name"], facts["stated_name_source"]) == ("Tiny Reader", "general.name")
    assert (facts["licence"], facts["licence_source"]) == ("cc-by-sa-4.0", "general.license")


def test_info_does_not_wait_for_torch() -> None:
    directory = str(GOLDEN / "internvit-300m-like_qwen2")
    program = (
        "import sys\n"
        "from ivl.cli.main import run\n"
        f"assert run(['info', '78b']) == run(['info', {directory!r}]) == 0\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("wanted", ["reference", "portable"])
def test_the_machine_says_which_kernels_run_and_why(
    wanted: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wanted == "portable" and cpu.loaded() is None:
        pytest.skip("the C++ extension was not built")
    monkeypatch.setenv("IVL_ISA", wanted)
    assert run(["info", "--machine", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert kernels["instruction_set"] == wanted
    assert wanted in kernels["usable"]
    assert f"IVL_ISA is {wanted}" in kernels["why"] or cpu.loaded() is None
    assert kernels["threads"] >= 1


@pytest.mark.parametrize("command", ["info", "plan"])
def test_what_is_told_before_loading_is_told_of_the_same_files(
    command: str, tiny_model_dir: Path, capsys: Output
) -> None:
    """A projector that a model cannot use, and a file that is none, are refused as `ask` does."""
    for model, options, says in (
        (tiny_model_dir, ["--mmproj", "nope.gguf"], "leave it out"),
        ("8b", ["--mmproj", "nope.gguf"], "leave it out"),
        (tiny_model_dir / "model.safetensors", [], "is no model"),
        (tiny_model_dir / "config.json", [], "is no model"),
    ):
        assert run([command, str(model), *options]) == 2
        assert says in capsys.readouterr().err
