"""Keeps every test away from the home, the settings and most of the processors of its user."""

from __future__ import annotations

import ctypes.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

_OF_THE_USER = ("IVL_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")
"""Beginnings of the environment variables that would let a user's settings into a test."""

_OF_THE_TESTS = {
    "IVL_FUZZ_SEEDS",
    "IVL_KILLS",
    "IVL_LLAMA_CPP",
    "IVL_LLAMA_CPP_PYTHON",
    "IVL_LLAMA_CPP_SOURCE",
    "IVL_PAGES",
    "IVL_REAL_PDFS",
    "IVL_TRUE_SHAPES",
}
"""Where an oracle is: tests that compare with it look here."""


def _settings_of_the_user() -> list[str]:
    return [
        name for name in os.environ if name.startswith(_OF_THE_USER) and name not in _OF_THE_TESTS
    ]


VLLM_PYTHON = os.environ.get("IVL_VLLM_PYTHON")
"""An interpreter that has vLLM, for the tests against it; see docs/awq.md."""

# Before anything imports them: torch, the tokenizers and huggingface_hub read their variables once,
# when they are loaded. The fixture below then gives every test its own for code that looks later.
for _name in _settings_of_the_user():
    del os.environ[_name]
_RUN_HOME = tempfile.TemporaryDirectory(prefix="ivl-tests-")
os.environ["HF_HOME"] = _RUN_HOME.name
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "2"
os.environ["MKL_NUM_THREADS"] = "2"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if ctypes.util.find_library("cuda") is None:
    # Triton's kernels are interpreted where there is no driver of a GPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, with everything that looks for files below it pointed there."""
    home = tmp_path / "home"
    home.mkdir()
    for name in _settings_of_the_user():
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for variable, folder in {
        "XDG_CACHE_HOME": ".cache",
        "XDG_CONFIG_HOME": ".config",
        "XDG_DATA_HOME": ".local/share",
        "XDG_STATE_HOME": ".local/state",
    }.items():
        monkeypatch.setenv(variable, str(home / folder))
    return home


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of IVL_VLLM_PYTHON; the test is skipped where there is none."""
    if not VLLM_PYTHON:
        pytest.skip("IVL_VLLM_PYTHON names no interpreter with vLLM")
    return Path(VLLM_PYTHON)


TINY_TILE_PX = 56


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model in the official layout with random weights, small enough to load in no time.

    A tile of 56 px is 4 image tokens, letters are single tokens, and the context is 512 tokens.
    Chosen greedily, its tokens are printable ASCII and never end the answer. Tests that change a
    file copy the directory first.
    """
    from safetensors.torch import save_file

    from ivl.checkpoint.names import sources
    from ivl.config import parse_config
    from ivl.prompt.template import get_template
    from tests.random_model import random_model
    from training.demo_tokenizer import build_tokenizer, save_tokenizer

    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    tokenizer = build_tokenizer(get_template("internvl2_5").default_system)
    save_tokenizer(tokenizer, directory)
    raw = _tiny_config(tokenizer.get_vocab_size())
    (directory / "config.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")

    config = parse_config(raw)
    tensors = random_model(config).float().state_dict()
    printable = [tokenizer.token_to_id(chr(code)) for code in range(ord("!"), ord("~") + 1)]
    head = tensors["decoder.lm_head.weight"]
    kept = head[printable].clone()
    head.zero_()
    head[printable] = 4 * kept
    official = {
        source.names[0]: tensors[ours][None] if source.combine == "squeeze" else tensors[ours]
        for ours, source in sources(config).items()
    }
    save_file(official, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _tiny_config(vocab_size: int) -> dict[str, Any]:
    """An official `config.json` with everything small."""
    golden = Path(__file__).parent / "golden" / "internvit-300m-like_qwen2" / "config.json"
    raw = json.loads(golden.read_text(encoding="utf-8"))
    raw["force_image_size"] = raw["vision_config"]["image_size"] = TINY_TILE_PX
    raw["vision_config"] |= {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    raw["llm_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab_size,
        "max_position_embeddings": 512,
    }
    return raw


@pytest.fixture(scope="session")
def changed() -> Callable[..., Path]:
    """Writes a GGUF file like another, but for some metadata (None: without them) and tensors."""
    import numpy as np

    from ivl.checkpoint.gguf import GGUFFile, GGUFTensorSpec
    from ivl.checkpoint.gguf_writer import Encoded, GGUFWriter
    from ivl.quant.formats import find_format

    def change(
        source: Path,
        out: Path,
        metadata: Mapping[str, Any] = {},
        tensors: Mapping[str, np.ndarray] = {},
    ) -> Path:
        file = GGUFFile(source)
        kept: dict[str, Any] = {key: Encoded(file.encoded(key)) for key in file.metadata}
        kept |= metadata
        kept = {key: value for key, value in kept.items() if value is not None}
        planned, raw = [], {}
        for name, entry in file.tensors.items():
            format_, shape, raw[name] = entry.format, entry.shape, file.read(name)
            if name in tensors:
                format_, shape = find_format("F32"), tensors[name].shape
                raw[name] = format_.quantize(tensors[name].reshape(-1, shape[-1]))
            planned.append(GGUFTensorSpec(name=name, format=format_, shape=shape))
        with GGUFWriter(out, kept, planned) as writer:
            for tensor in planned:
                writer.write(tensor.name, raw[tensor.name])
        return out

    return change


TransformersModel = Callable[..., Any]


@pytest.fixture(scope="session")
def transformers_internvl() -> TransformersModel:
    """Builds transformers' own InternVL with random weights, as tiny as `tiny_model_dir`.

    Arguments: the text model (`qwen2`, `llama`), the norm of the vision tower, and settings of the
    text model. The id 99 stands for `<IMG_CONTEXT>`.
    """
    from transformers import InternVLForConditionalGeneration

    def build(text: str = "qwen2", vision: str = "layer_norm", **settings: Any) -> Any:
        config = _transformers_config(text, vision, **settings)
        model = InternVLForConditionalGeneration(config).eval()
        _randomize(model)
        return model

    return build


def _transformers_config(text: str, vision: str, **settings: Any) -> Any:
    from transformers import InternVLConfig, LlamaConfig, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    tied = settings.pop("tie_word_embeddings", False)
    return InternVLConfig(
        text_config={"qwen2": Qwen2Config, "llama": LlamaConfig}[text](**small | settings),
        vision_config=InternVLVisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=[TINY_TILE_PX, TINY_TILE_PX],
            norm_type=vision,
            use_qk_norm=vision == "rms_norm",
            attention_bias=vision == "layer_norm",
        ),
        image_token_id=99,
        tie_word_embeddings=tied,
    )


def _randomize(model: Any) -> None:
    """Gives every weight a value that shows: fresh norms are ones, and fresh biases zeros."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(0.1 * noise + (0 if name.endswith("bias") else 1))
            elif "embeddings" in name or "embed_tokens" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * p[0].numel() ** -0.5)
