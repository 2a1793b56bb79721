"""Files that are no model, or not of one model, given to the command line: each is told apart."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ivl.checkpoint.gguf import GGUFFile
from ivl.cli.main import run

Output = pytest.CaptureFixture[str]
Ask = Callable[..., tuple[str, str]]
Changed = Callable[..., Path]


@pytest.fixture(scope="module")
def pair(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("pair")
    arguments = ["convert", str(tiny_model_dir), str(out), "--type", "Q8_0", "--vision", "F16"]
    assert run([*arguments, "--name", "tiny", "-q"]) == 0
    return out / "tiny-Q8_0.gguf", out / "mmproj-tiny-F16.gguf"


@pytest.fixture
def ask(tmp_path: Path, capsys: Output) -> Ask:
    """Asks about an image; returns the error and its hint, which there must be."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (60, 60), "red").save(picture)

    def ask(model: Path, mmproj: Path | None = None, *, image: bool = True) -> tuple[str, str]:
        arguments = ["ask", *([str(picture)] if image else []), "What?", "--model", str(model)]
        arguments += ["--max-tokens", "2"]
        capsys.readouterr()
        code = run(arguments if mmproj is None else [*arguments, "--mmproj", str(mmproj)])
        shown = capsys.readouterr()
        if code == 0:
            return "", ""
        assert (code, shown.out) == (2, "")
        error, _, hint = shown.err.partition("\n")
        assert error.startswith("error: ")
        assert hint.strip()
        return error, hint

    return ask


def test_what_all_the_others_are_changed_from_is_sound(ask: Ask, pair: tuple[Path, Path]) -> None:
    assert ask(*pair) == ("", "")


LLAVA = {"clip.projector_type": "mlp", "clip.has_llava_projector": True}
PROJECTORS: dict[str, tuple[dict[str, Any], str, str]] = {
    "tile": ({"clip.vision.image_size": 112}, "tiles of 112 pixels", "another conversion"),
    "patch": ({"clip.vision.patch_size": 28}, "patches of 28 pixels", "another conversion"),
    "mean": (
        {"clip.vision.image_mean": np.array([0.4815, 0.4578, 0.4082], np.float32)},
        "the mean 0.4815, 0.4578, 0.4082, not with ImageNet's",
        "trained with",
    ),
    "std": (
        {"clip.vision.image_std": np.array([0.5, 0.5, 0.5], np.float32)},
        "the std 0.5, 0.5, 0.5, not with ImageNet's",
        "trained with",
    ),
    "LLaVA": (LLAVA, "a projector of type 'mlp' (LLaVA)", "repository that the language model"),
    "LLaVA before it had a type": (
        {"clip.projector_type": None, "clip.has_llava_projector": True},
        "(LLaVA)",
        "repository that the language model",
    ),
    "Llama 3.2 Vision": (
        {"general.architecture": "mllama"},
        "(Llama 3.2 Vision)",
        "repository that the language model",
    ),
    "Qwen2.5-VL": (
        {"clip.projector_type": "qwen2.5vl_merger"},
        "(Qwen2.5-VL)",
        "repository that the language model",
    ),
    "more layers than it holds": (
        {"clip.vision.block_count": 2**31},
        "num_hidden_layers is 2147483648",
        "damaged",
    ),
}


@pytest.mark.parametrize("case", PROJECTORS)
def test_a_projector_that_is_not_this_models(
    case: str, ask: Ask, changed: Changed, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    metadata, message, hint = PROJECTORS[case]
    error, shown = ask(pair[0], changed(pair[1], tmp_path / "mmproj.gguf", metadata))
    assert message in error
    assert hint in shown


def test_a_projector_of_another_width(
    ask: Ask, changed: Changed, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = {
        "mm.model.mlp.3.weight": np.ones((80, 64), np.float32),
        "mm.model.mlp.3.bias": np.ones(80, np.float32),
    }
    projector = changed(pair[1], tmp_path / "mmproj.gguf", {"clip.vision.projection_dim": 80}, wide)
    error, hint = ask(pair[0], projector)
    assert "features of width 80, the language model takes 64" in error
    assert "repository that the language model is from" in hint


def test_the_files_in_each_others_place(ask: Ask, pair: tuple[Path, Path]) -> None:
    text, projector = pair
    error, hint = ask(projector, text)
    assert "wrong way round" in error
    assert f"The model is {text.name}, the projector {projector.name}." in hint
    error, hint = ask(text, text)
    assert "is a language model (qwen2), not a projector" in error
    assert "mmproj" in hint
    error, hint = ask(projector)
    assert "only half of a model" in error
    assert "GGUF file of the language model" in hint


@pytest.mark.parametrize("name", ["<img>", "</img>", "<IMG_CONTEXT>"])
def test_a_tokenizer_without_the_image_tokens(
    name: str,
    ask: Ask,
    changed: Changed,
    pair: tuple[Path, Path],
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    tokens = [
        "<other>" if token == name else token
        for token in GGUFFile(pair[0]).metadata["tokenizer.ggml.tokens"]  # type: ignore[union-attr]
    ]
    text = changed(pair[0], tmp_path / "text.gguf", {"tokenizer.ggml.tokens": tokens})
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    for file in directory.glob("token*.json"):
        file.write_text(file.read_text("utf-8").replace(f'"{name}"', '"<other>"'), "utf-8")
    for error, hint in (ask(text, pair[1]), ask(directory)):
        assert f"no {name}, so it cannot take images" in error
        assert "InternVL repository" in hint


def test_a_tokenizer_with_other_ids_than_the_models(
    ask: Ask, changed: Changed, pair: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Qwen2's vocabulary, whose ids are known; the tokens are there, in other places."""
    rows = 151674
    known = GGUFFile(pair[0]).metadata
    tokens: Any = known["tokenizer.ggml.tokens"]
    kinds: Any = known["tokenizer.ggml.token_type"]
    more = rows - len(tokens)
    metadata = {
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{n}]" for n in range(more))],
        "tokenizer.ggml.token_type": np.concatenate([kinds, np.full(more, 5, np.int32)]),
    }
    embeddings = dict.fromkeys(
        ("token_embd.weight", "output.weight"), np.zeros((rows, 64), np.float32)
    )
    text = changed(pair[0], tmp_path / "text.gguf", metadata, embeddings)
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    raw = json.loads((directory / "config.json").read_text("utf-8"))
    raw["llm_config"]["vocab_size"] = rows
    (directory / "config.json").write_text(json.dumps(raw), "utf-8")
    for error, hint in (ask(text, pair[1]), ask(directory)):
        assert "gives <|im_end|> the id" in error
        assert "trained with 151645" in error
        assert "the same repository" in hint


def test_a_vocabulary_of_another_size(
    ask: Ask, changed: Changed, pair: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tokens: Any = GGUFFile(pair[0]).metadata["tokenizer.ggml.tokens"]
    longer = [*tokens, "more"]
    text = changed(pair[0], tmp_path / "text.gguf", {"tokenizer.ggml.tokens": longer})
    error, hint = ask(text, pair[1])
    assert f"the tokenizer has {len(longer)} tokens, the embeddings have {len(tokens)}" in error
    assert "another model" in hint
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    raw = json.loads((directory / "config.json").read_text("utf-8"))
    raw["llm_config"]["vocab_size"] -= 8
    (directory / "config.json").write_text(json.dumps(raw), "utf-8")
    error, hint = ask(directory)
    assert f"and the model {len(tokens) - 8}" in error
    assert "not those of this model" in hint


TEMPLATES: dict[str, tuple[str, str]] = {
    "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}": "not ChatML",
    "{{ '<|im_start|>system\\n' + messages[0].content if x else '<|im_start|>system\\na'"
    " ~ b }}<|im_start|>": "cannot be made out",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_text_model_that_talks_otherwise(
    template: str, ask: Ask, changed: Changed, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tokens: Any = GGUFFile(pair[0]).metadata["tokenizer.ggml.tokens"]
    metadata = {
        "tokenizer.ggml.tokens": [t if t != "<IMG_CONTEXT>" else "<other>" for t in tokens],
        "tokenizer.chat_template": template,
        "ivl.template": None,
    }
    error, hint = ask(changed(pair[0], tmp_path / "text.gguf", metadata), image=False)
    assert TEMPLATES[template] in error
    assert hint.strip()


def test_an_image_for_a_pair_without_its_projector(
    ask: Ask, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    text = Path(shutil.copy(pair[0], tmp_path / "text.gguf"))
    assert ask(text, image=False) == ("", "")
    error, hint = ask(text)
    assert "text-only model" in error
    assert "--mmproj" in hint
    error, hint = ask(text, tmp_path / "gone.gguf")
    assert "no file" in error


def test_a_damaged_neighbour_stops_nothing(
    ask: Ask, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for file in pair:
        shutil.copy(file, tmp_path)
    (tmp_path / "a.gguf").write_bytes(pair[0].read_bytes()[:30])
    (tmp_path / "b.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "c.gguf").touch()
    assert ask(tmp_path / pair[0].name) == ("", "")
    assert ask(tmp_path) == ("", "")
    # But a projector that was cut off is still the model's.
    (tmp_path / pair[1].name).write_bytes(pair[1].read_bytes()[:-1000])
    error, hint = ask(tmp_path)
    assert "is truncated" in error
    assert "Download" in hint
    (tmp_path / pair[0].name).unlink()
    (tmp_path / pair[1].name).unlink()
    error, hint = ask(tmp_path)
    assert "a.gguf claims 27 tensors" in error


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_file_that_was_cut_off(
    share: float, which: int, ask: Ask, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    raw = pair[which].read_bytes()
    files = list(pair)
    files[which] = tmp_path / "cut.gguf"
    files[which].write_bytes(raw[: int(share * len(raw))])
    error, _ = ask(*files)
    assert any(word in error for word in ("truncated", "empty", "no model", "claims"))


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_git_lfs_pointer_in_a_directory_is_called_so(
    name: str, ask: Ask, tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "clone"
    shutil.copytree(tiny_model_dir, directory)
    (directory / name).write_bytes(POINTER)
    error, hint = ask(directory)
    assert f"{name} is a Git LFS pointer, not the file itself" in error
    assert f"`git lfs pull` in {directory}" in hint


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "model.safetensors.index.json", "preprocessor_config.json"]
)
def test_any_other_file_that_is_a_pointer_too(
    name: str, ask: Ask, tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "clone"
    shutil.copytree(tiny_model_dir, directory)
    if name == "tokenizer.model":
        (directory / "tokenizer.json").unlink()
    if name == "model.safetensors.index.json":
        (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(POINTER)
    error, _ = ask(directory)
    assert f"{name} is a Git LFS pointer" in error


def test_a_pointer_in_the_place_of_a_gguf_file(
    ask: Ask, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    pointer = tmp_path / "model.gguf"
    pointer.write_bytes(POINTER)
    for error, hint in (ask(pointer), ask(pair[0], pointer), ask(tmp_path)):
        assert "model.gguf is a Git LFS pointer" in error
        assert "git lfs pull" in hint


def test_a_projector_that_is_a_pointer_does_not_make_a_model_blind(
    ask: Ask, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copy(pair[0], tmp_path / "model.gguf")
    (tmp_path / "mmproj-model-F16.gguf").write_bytes(POINTER)
    for model in (tmp_path, tmp_path / "model.gguf"):
        error, _ = ask(model)
        assert "mmproj-model-F16.gguf is a Git LFS pointer" in error


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_lora_adapter_says_merge_it_first(
    name: str, whole: bool, ask: Ask, tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "adapter"
    if whole:  # transformers would add it to the weights beside it
        shutil.copytree(tiny_model_dir, directory)
    else:
        directory.mkdir()
    (directory / name).write_text('{"base_model_name_or_path": "OpenGVLab/InternVL2_5-1B"}')
    error, hint = ask(directory)
    assert "LoRA adapter" in error
    assert ("for OpenGVLab/InternVL2_5-1B" in error) == (name == "adapter_config.json")
    assert "Merge it first" in hint
    assert "merge_and_unload" in hint
    if name.endswith(".safetensors"):
        error, _ = ask(directory / name)
        assert "LoRA adapter" in error


@pytest.mark.parametrize(
    "extra",
    [
        "language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "language_model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "vision_model.encoder.layers.0.attn.qkv.lora_magnitude_vector.default.weight",
    ],
)
def test_a_fine_tune_that_is_not_merged_says_how(
    extra: str, ask: Ask, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "tuned"
    shutil.copytree(tiny_model_dir, directory)
    weights = load_file(directory / "model.safetensors")
    save_file({**weights, extra: torch.ones(4, 4)}, directory / "model.safetensors")
    error, hint = ask(directory)
    assert "LoRA weights are not merged" in error
    assert extra in error
    assert "tools/merge_lora.py" in hint


def test_a_gguf_adapter_says_merge_it_first(
    ask: Ask, changed: Changed, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    metadata = {"general.type": "adapter", "adapter.type": "lora"}
    error, hint = ask(changed(pair[0], tmp_path / "lora.gguf", metadata), pair[1])
    assert "is a LoRA adapter" in error
    assert "llama-export-lora" in hint


def test_a_training_runs_own_checkpoint_says_merge_it_first(
    ask: Ask, tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoint-200"
    shutil.copytree(tiny_model_dir, directory)
    (directory / "model.safetensors").unlink()
    (directory / "zero_to_fp32.py").write_text("# by DeepSpeed")
    error, hint = ask(directory)
    assert "DeepSpeed" in error
    assert "zero_to_fp32.py" in hint


@pytest.mark.parametrize("kind", ["torch", "old torch", "protocol 0", "protocol 4"])
@pytest.mark.parametrize("name", ["weights", "model.gguf", "model.safetensors"])
def test_a_pickle_is_refused_whatever_it_is_called(
    kind: str, name: str, ask: Ask, tiny_model_dir: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    file = tmp_path / name
    if "torch" in kind:
        state = {"a": torch.ones(3)}
        torch.save(state, file, _use_new_zipfile_serialization=kind == "torch")
    else:
        file.write_bytes(pickle.dumps([Bad()], protocol=int(kind[-1])))
    cases = [ask(file), ask(pair[0], file)]
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    (directory / "model.safetensors").unlink()
    if name != "model.gguf":
        shutil.copy(file, directory / name)
        cases.append(ask(directory))
    for error, hint in cases:
        assert "pickle" in error
        assert "safetensors" in hint
    assert not (tmp_path / "owned").exists()
