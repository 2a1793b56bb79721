"""AWQ checkpoints of every layout give what plain ones of the same rounded weights give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivl.checkpoint.files import tensors_of
from ivl.checkpoint.safetensors import INDEX_NAME
from ivl.cli.main import run
from ivl.config import read_config
from ivl.errors import CheckpointError
from ivl.footprint.parts import weigh
from ivl.footprint.tensors import AWQ
from ivl.kernels.linear import QuantizedLinear
from ivl.model.build import build_model

GOLDEN = Path(__file__).parents[1] / "golden"
SETTINGS = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128}
SETTINGS |= {"zero_point": True}
MATRICES = (
    "q_proj.weight k_proj.weight v_proj.weight o_proj.weight gate_proj.weight up_proj.weight "
    "down_proj.weight wqkv.weight wo.weight w1.weight w2.weight w3.weight"
).split()


def words(nibbles: Tensor) -> Tensor:
    """(n, outputs) of 0 to 15 -> int32 (n, outputs / 8), as AutoAWQ packs them."""
    eights = nibbles.to(torch.int64).unflatten(1, (-1, 8))
    packed = torch.zeros(eights.shape[:2], dtype=torch.int64)
    for i, place in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        packed |= eights[:, :, place] << (4 * i)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def rounded(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of AWQ for a weight (outputs, inputs), and the weight that they stand for."""
    groups = weight.float().unflatten(1, (-1, 128))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    levels = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    stands_for = ((levels - zeros[..., None]) * scales.float()[..., None]).flatten(1)
    stored = {
        "qweight": words(levels.flatten(1).T),
        "qzeros": words(zeros.T),
        "scales": scales.T.contiguous(),
    }
    return stored, stands_for


def quantize_directory(source: Path, plain: Path, awq: Path, section: str | None) -> None:
    """Rewrites a checkpoint twice: with rounded weights, and those as AWQ, in two shards."""
    for directory in (plain, awq):
        shutil.copytree(source, directory)
    tensors = load_file(source / "model.safetensors")
    rounded_tensors, awq_tensors = dict(tensors), {}
    for name, tensor in tensors.items():
        if "vision" not in name and name.endswith(tuple(MATRICES)):
            stored, rounded_tensors[name] = rounded(tensor)
            stem = name.removesuffix("weight")
            awq_tensors |= {stem + part: value for part, value in stored.items()}
        else:
            awq_tensors[name] = tensor
    save_file(rounded_tensors, plain / "model.safetensors")
    (awq / "model.safetensors").unlink()
    names = sorted(awq_tensors)
    shards = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: awq_tensors[name] for name in members}, awq / shard)
    index = {name: shard for shard, members in shards.items() for name in members}
    (awq / INDEX_NAME).write_text(json.dumps({"weight_map": index}))
    raw = json.loads((awq / "config.json").read_text())
    (raw[section] if section else raw)["quantization_config"] = SETTINGS
    (awq / "config.json").write_text(json.dumps(raw))


def assert_same_model(plain: Path, awq: Path) -> None:
    config = read_config(awq)
    expected = build_model(read_config(plain), plain, dtype=torch.float32)
    model = build_model(config, awq, dtype=torch.float32)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 7 * config.decoder.num_layers
    stored = sum(layer.matrix.num_bytes for layer in layers)
    assert (
        stored <= 1.15 * sum(layer.in_features * layer.out_features for layer in layers) * 68 / 128
    )
    ids = torch.arange(40) % config.decoder.vocab_size
    nowhere = torch.zeros(40, dtype=torch.bool)
    with torch.inference_mode():
        ours, theirs = (m.logits(ids, nowhere, None) for m in (model, expected))
    assert (ours - theirs).norm() <= 2e-2 * theirs.norm()
    for layer, (name, plain_layer) in zip(
        layers,
        (
            (n, m)
            for n, m in expected.decoder.layers.named_modules()
            if isinstance(m, torch.nn.Linear)
        ),
        strict=True,
    ):
        assert torch.equal(layer.matrix.dequantize(), plain_layer.weight), name


@pytest.mark.parametrize("section", [None, "llm_config"])
@pytest.mark.parametrize("name", ["internvit-300m-like_qwen2", "internvit-6b-like_internlm2"])
def test_official_layout(name: str, section: str | None, tmp_path: Path) -> None:
    plain, awq = tmp_path / "plain", tmp_path / "awq"
    quantize_directory(GOLDEN / name, plain, awq, section)
    assert_same_model(plain, awq)


@pytest.mark.parametrize("text", ["qwen2", "llama"])
def test_huggingface_layout(
    text: str, transformers_internvl: Callable[..., Any], tmp_path: Path
) -> None:
    source, plain, awq = (tmp_path / name for name in ("source", "plain", "awq"))
    transformers_internvl(text, hidden_size=128, intermediate_size=256).save_pretrained(source)
    quantize_directory(source, plain, awq, None)
    assert_same_model(plain, awq)


@pytest.fixture
def awq_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "awq"
    source = GOLDEN / "internvit-6b-like_internlm2"
    quantize_directory(source, tmp_path / "plain", directory, "llm_config")
    return directory


def change(directory: Path, name: str, value: Tensor | None) -> None:
    """Replaces a tensor, or takes it away, in whichever shard has it."""
    index = json.loads((directory / INDEX_NAME).read_text())
    file = directory / index["weight_map"][name]
    tensors = load_file(file)
    tensors.pop(name)
    save_file(tensors if value is None else tensors | {name: value}, file)


WQKV = "language_model.model.layers.1.attention.wqkv"


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("qzeros", None, "wqkv.qzeros"),
        ("qweight", torch.zeros(128, 30, dtype=torch.int32), "other shapes"),
        ("scales", torch.ones(2, 256).half(), "other shapes"),
        ("scales", torch.ones(1, 256), "type F32"),
        ("qweight", torch.zeros(128, 32, dtype=torch.int8), "type I8"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tensor: str, value: Tensor | None, message: str, awq_directory: Path
) -> None:
    change(awq_directory, f"{WQKV}.{tensor}", value)
    with pytest.raises(CheckpointError, match=message):
        build_model(read_config(awq_directory), awq_directory)


def test_awq_tensors_without_a_word_in_the_configuration_are_unexpected(
    awq_directory: Path,
) -> None:
    raw = json.loads((awq_directory / "config.json").read_text())
    del raw["llm_config"]["quantization_config"]
    (awq_directory / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="lacks"):
        build_model(read_config(awq_directory), awq_directory)


def test_a_matrix_that_was_left_in_16_bits_is_read_as_such(awq_directory: Path) -> None:
    """`modules_to_not_convert` may name layers of the decoder."""
    stem = "language_model.model.layers.0.feed_forward.w2."
    plain = load_file(awq_directory.parent / "plain" / "model.safetensors")[stem + "weight"]
    index_file = awq_directory / INDEX_NAME
    index = json.loads(index_file.read_text())["weight_map"]
    for part in ("qweight", "qzeros", "scales"):
        change(awq_directory, stem + part, None)
        del index[stem + part]
    save_file({stem + "weight": plain}, awq_directory / "more.safetensors")
    index[stem + "weight"] = "more.safetensors"
    index_file.write_text(json.dumps({"weight_map": index}))
    model = build_model(read_config(awq_directory), awq_directory, dtype=torch.float32)
    assert torch.equal(model.decoder.layers[0].ffn.down.weight, plain)
    assert isinstance(model.decoder.layers[1].ffn.down, QuantizedLinear)


def test_the_plan_counts_what_the_matrices_take(awq_directory: Path) -> None:
    """The same model, planned with 16 bits throughout and with 4 in the decoder's matrices."""
    awq, plain = read_config(awq_directory), read_config(awq_directory.parent / "plain")
    model = build_model(awq, awq_directory, dtype=torch.bfloat16)
    quantized = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    saved = sum(2 * q.in_features * q.out_features - q.matrix.num_bytes for q in quantized)
    planned = []
    for config, folder in ((plain, awq_directory.parent / "plain"), (awq, awq_directory)):
        tensors = tensors_of(folder, config, None)
        decoder = (t._replace(format="BF16") if t.format != AWQ else t for t in tensors)
        layers = config.decoder.num_layers
        planned.append(sum(weigh(decoder, layers, "packed", "packed").layers))
    assert planned[0] - planned[1] == saved


def test_info_says_what_it_is(awq_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(awq_directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"] == "awq"
    assert run(["info", str(awq_directory)]) == 0
    assert "AWQ" in capsys.readouterr().out
