"""Reading a model from its directory: strictly, one tensor at a time, and never something else."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import ivl
from ivl.checkpoint.safetensors import INDEX_NAME, SafetensorsDirectory
from ivl.config import parse_config, read_config
from ivl.errors import CheckpointError, IvlError, UnsupportedError
from ivl.model import build
from ivl.model.build import build_model
from ivl.model.internvl import InternVL

Change = Callable[[dict[str, Tensor]], None]
GOLDEN = Path(__file__).parents[1] / "golden"
QKV = "vision_model.encoder.layers.1.attn.qkv.weight"


@pytest.fixture(params=["internvit-300m-like_qwen2", "internvit-6b-like_internlm2"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an official checkpoint."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / request.param))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> InternVL:
    return build_model(read_config(directory), directory, dtype=dtype)


def rewrite(directory: Path, change: Change) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def split(directory: Path, num_shards: int) -> list[Path]:
    """The same weights as shards with an index, as the large sizes come."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = [f"model-{n + 1:05}-of-{num_shards:05}.safetensors" for n in range(num_shards)]
    weight_map = {tensor: names[n % num_shards] for n, tensor in enumerate(tensors)}
    for name in names:
        save_file({k: v for k, v in tensors.items() if weight_map[k] == name}, directory / name)
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return [directory / name for name in names]


def test_shards_and_one_file_are_the_same_model(directory: Path) -> None:
    whole = load(directory).state_dict()
    split(directory, 3)
    shards = load(directory).state_dict()
    assert whole.keys() == shards.keys()
    for name, tensor in whole.items():
        assert torch.equal(shards[name], tensor), name


def test_packed_rows_of_internlm2_go_to_their_heads() -> None:
    """The golden outputs would tell too; this says which row is wrong."""
    directory = GOLDEN / "internvit-6b-like_internlm2"
    packed = load_file(directory / "model.safetensors")[
        "language_model.model.layers.0.attention.wqkv.weight"
    ]
    config = read_config(directory).decoder
    attn = load(directory).decoder.layers[0].attn
    row, d = 0, config.head_dim
    for kv in range(config.num_kv_heads):
        for q in range(2):
            head = 2 * kv + q
            assert torch.equal(attn.q.weight[head * d : (head + 1) * d], packed[row : row + d])
            row += d
        for matrix in (attn.k.weight, attn.v.weight):
            assert torch.equal(matrix[kv * d : (kv + 1) * d], packed[row : row + d])
            row += d


def test_weights_are_cast_and_owned(directory: Path) -> None:
    """A view of the mapped file would change, or fail, when the file does."""
    model = load(directory, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    before = {name: p.clone() for name, p in model.named_parameters()}
    file = directory / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\xff" * 1000)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_tensors_are_let_go_one_by_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one tensor is being read, those before it are no longer held by the loader."""
    living: list[weakref.ref[Tensor]] = []
    most = 0
    read = SafetensorsDirectory.read

    def watched(self: SafetensorsDirectory, name: str) -> Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in living))
        tensor = read(self, name)
        living.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsDirectory, "read", watched)
    load(directory)
    assert len(living) > 50
    assert most <= 1


def test_progress_counts_every_byte(directory: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = read_config(directory)
    build_model(config, directory, dtype=torch.float16, progress=lambda *n: seen.append(n))
    model = load(directory)
    total = 2 * sum(p.numel() for p in model.parameters())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_nothing_is_read_before_everything_is_checked(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(directory, lambda tensors: tensors.pop("mlp1.3.bias"))
    monkeypatch.setattr(SafetensorsDirectory, "read", None)
    monkeypatch.setattr(build, "assign", None)
    with pytest.raises(CheckpointError, match="lacks 1 of"):
        load(directory)


def halve(name: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()

    return change


def put(name: str, tensor: Tensor) -> Change:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda t: t.pop(QKV), f"lacks 1 of .*{QKV}", "incomplete"),
        (lambda t: t.clear(), r"lacks (\d+) of \1 tensors", "incomplete"),
        (put("vision_model.head.weight", torch.ones(2)), "vision_model.head.weight", "another"),
        (halve(QKV), QKV, "another size"),
        (halve("mlp1.1.bias"), "mlp1.1.bias", "another size"),
        (put(QKV, torch.ones(5)), r"is \[5\], for", "another size"),
        (put("mlp1.1.bias", torch.ones(128, dtype=torch.int8)), "type I8", "16-bit"),
    ],
)
def test_other_tensors_than_expected_are_refused(
    change: Change, message: str, hint: str, directory: Path
) -> None:
    rewrite(directory, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(directory)
    assert hint in caught.value.hint


def test_wrong_packed_rows_are_a_wrong_shape(tmp_path: Path) -> None:
    name = "internvit-6b-like_internlm2"
    directory = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    rewrite(directory, halve("language_model.model.layers.1.attention.wqkv.weight"))
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.attention\.wqkv\.weight is \[128, 128\]"
    ):
        load(directory)


def test_weights_of_another_size_are_told_from_damage(directory: Path) -> None:
    raw = json.loads((directory / "config.json").read_text())
    raw["llm_config"]["hidden_size"] *= 2
    (directory / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="other shapes than") as caught:
        load(directory)
    assert "another size of the model" in caught.value.hint


def test_buffers_of_old_checkpoints_are_passed_over(directory: Path) -> None:
    frequencies = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    positions = "vision_model.embeddings.position_ids"
    rewrite(directory, put(frequencies, torch.ones(16)))
    rewrite(directory, put(positions, torch.arange(9)))
    load(directory)


def test_a_missing_or_truncated_shard_is_named(directory: Path) -> None:
    shards = split(directory, 3)
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.*truncated: 100 of"):
        load(directory)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        load(directory)


def test_the_language_model_alone_is_no_vision_model(directory: Path) -> None:
    """A config.json of the whole model beside the weights of its decoder, and the reverse."""
    raw = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    text = {
        name.removeprefix("language_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("language_model.")
    }
    (directory / "config.json").write_text(json.dumps(raw["llm_config"]))
    with pytest.raises(CheckpointError, match=f"lacks {len(text)} of {len(text)}"):
        load(directory)
    save_file(text, directory / "model.safetensors")
    model = load(directory)
    assert model.vision is None
    with pytest.raises(UnsupportedError, match="text-only"):
        model.encode_tiles(torch.zeros(1, 448, 448, 3, dtype=torch.uint8))
    (directory / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"lacks {len(tensors)} of {len(tensors)}"):
        load(directory)


def test_asking_a_text_only_model_about_an_image_is_an_error(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "text"))
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw["llm_config"]))

    def keep_text(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            if name.startswith("language_model."):
                tensors[name.removeprefix("language_model.")] = tensor

    rewrite(directory, keep_text)
    model = ivl.load(directory, dtype="float32", device="cpu")
    assert len(model.ask(None, "Hello?", max_tokens=4).tokens) == 4
    with pytest.raises(IvlError, match="text-only"):
        model.ask(Image.new("RGB", (60, 60)), "What is it?")


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "internvl3_moe"])
def test_another_vision_model_is_named_before_its_weights_are_looked_at(
    kind: str, directory: Path
) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": kind}))
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=kind):
        load(directory)


def test_v1_checkpoints_differ_in_the_order_of_tokens_alone() -> None:
    name = "internvit-300m-like_qwen2"
    raw = json.loads((GOLDEN / name / "config.json").read_text())
    old = raw | {"ps_version": "v1"}
    tile = torch.randint(0, 256, (1, 448, 448, 3), dtype=torch.uint8)
    with torch.inference_mode():
        v1, v2 = (
            build_model(parse_config(config), GOLDEN / name, dtype=torch.float32).encode_tiles(tile)
            for config in (old, raw)
        )
    transposed = v1.unflatten(1, (16, 16)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(transposed, v2)
    assert not torch.allclose(v1, v2, atol=1e-3)


@pytest.mark.parametrize("change", ["template", "vocabulary"])
def test_what_only_the_engine_needs_is_checked_before_the_weights(
    change: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Reading those of a large model takes minutes."""
    directory = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    raw = json.loads((directory / "config.json").read_text())
    if change == "template":
        raw["template"] = "vicuna"
    else:
        raw["llm_config"]["vocab_size"] = 90
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "model.safetensors").unlink()
    with pytest.raises(IvlError, match=r"'vicuna'|the model 90"):
        ivl.load(directory)
