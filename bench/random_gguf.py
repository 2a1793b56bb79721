"""GGUF pairs of random weights at the true shapes of the Qwen2 sizes, for measuring speed.

    python -m bench.random_gguf --shape 4b --type Q4_K_M [--vision F16] FOLDER

Nothing is quantized: each matrix is filled with rows drawn from a few that were, so that a file of
any size takes seconds. The values have the spread of a fresh model's, so activations stay finite.
llama.cpp loads the pairs as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.tokenizer_files import write_tokenizer
from ivl.checkpoint.gguf_names import GGUF_VISION, GGUF_VISION_Q_K_V
from ivl.checkpoint.gguf_projector import IMAGENET_MEAN, IMAGENET_STD
from ivl.checkpoint.gguf_writer import GGUFWriter, PlannedTensor
from ivl.config import DecoderConfig, ModelConfig
from ivl.family import find
from ivl.quant.formats import find_format
from ivl.quant.mixes import MixContext, decoder_tensors, find_mix, tensor_type

NUM_ROWS = 64
ROWS_AT_ONCE = 8192
SPECIAL, UNUSED = 3, 5  # kinds of tokens (gguf-py, TokenType)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b", help="1b, 4b, 38b or 78b")
    parser.add_argument("--type", default="Q4_K_M", help="the decoder's mix")
    parser.add_argument("--vision", default="F16", help="the format of the tower's matrices")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for path in write_pair(options.shape, options.type, options.vision, options.folder):
        print(path)


def write_pair(shape: str, mix: str, vision: str, folder: Path) -> tuple[Path, Path]:
    """The text file and the projector's; one that is there already is left as it is."""
    size = find(shape)
    if size is None or size.decoder.architecture != "qwen2":
        raise SystemExit(f"error: {shape!r} is none of the Qwen2 sizes 1b, 4b, 38b, 78b")
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"{size.name}-{mix}.gguf"
    mmproj = folder / f"{size.name}-mmproj-{vision}.gguf"
    filler = Filler()
    if not text.exists():
        decoder, context = size.decoder, MixContext.of(size.decoder)
        tensors = [
            PlannedTensor(
                name=name, format=find_format(tensor_type(mix, name, dims, context)), shape=dims
            )
            for name, dims in decoder_tensors(decoder).items()
        ]
        filler.write(text, text_metadata(decoder, find_mix(mix).file_type), tensors)
    if not mmproj.exists():
        filler.write(
            mmproj, projector_metadata(size.config), projector_tensors(size.config, vision)
        )
    return text, mmproj


class Filler:
    """Fills files with random rows of every format."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._rows: dict[tuple[str, int], np.ndarray] = {}

    def write(self, path: Path, metadata: dict[str, Any], tensors: list[PlannedTensor]) -> None:
        with GGUFWriter(path, metadata, tensors) as writer:
            for tensor in tensors:
                if len(tensor.shape) == 1:
                    writer.write(tensor.name, tensor.format.quantize(self._vector(tensor)))
                    continue
                rows = self._random_rows(tensor)
                for start in range(0, tensor.rows, ROWS_AT_ONCE):
                    count = min(ROWS_AT_ONCE, tensor.rows - start)
                    which = self._rng.integers(0, NUM_ROWS, count)
                    writer.write(tensor.name, rows[which], start)

    def _vector(self, tensor: PlannedTensor) -> np.ndarray:
        length = tensor.shape[-1]
        if tensor.name.endswith(("ls1.weight", "ls2.weight")):
            return np.full((1, length), 0.1, np.float32)
        if tensor.name.endswith("weight"):
            return np.ones((1, length), np.float32)
        return self._rng.standard_normal((1, length), np.float32) * np.float32(0.02)

    def _random_rows(self, tensor: PlannedTensor) -> np.ndarray:
        columns = tensor.shape[-1]
        key = tensor.format.name, columns
        if key not in self._rows:
            inputs = int(np.prod(tensor.shape[1:]))
            weights = self._rng.standard_normal((NUM_ROWS, columns), np.float32)
            self._rows[key] = tensor.format.quantize(weights * np.float32(inputs**-0.5))
        return self._rows[key]


def text_metadata(decoder: DecoderConfig, file_type: int) -> dict[str, Any]:
    """What llama.cpp asks of a Qwen2 file, with Qwen's own tokenizer."""
    return {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "random weights",
        "general.file_type": file_type,
        "general.quantization_version": 2,
        "qwen2.context_length": decoder.max_positions,
        "qwen2.embedding_length": decoder.hidden_size,
        "qwen2.block_count": decoder.num_layers,
        "qwen2.feed_forward_length": decoder.intermediate_size,
        "qwen2.attention.head_count": decoder.num_heads,
        "qwen2.attention.head_count_kv": decoder.num_kv_heads,
        "qwen2.attention.layer_norm_rms_epsilon": decoder.norm_eps,
        "qwen2.rope.freq_base": decoder.rope_theta,
        **tokenizer_metadata(decoder.vocab_size),
    }


def tokenizer_metadata(vocab_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer("qwen2", Path(folder))
        vocabulary = json.loads((Path(folder) / "vocab.json").read_text("utf-8"))
        merges = (Path(folder) / "merges.txt").read_text("utf-8").splitlines()[1:]
        settings = json.loads((Path(folder) / "tokenizer_config.json").read_text("utf-8"))
    added = {int(key): value["content"] for key, value in settings["added_tokens_decoder"].items()}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [1] * len(tokens)
    for number in range(len(tokens), vocab_size):
        tokens.append(added.get(number, f"[PAD{number}]"))
        kinds.append(SPECIAL if number in added else UNUSED)
    ends = {name: number for number, name in added.items()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": ends["<|im_end|>"],
        "tokenizer.ggml.bos_token_id": ends["<|endoftext|>"],
        "tokenizer.ggml.padding_token_id": ends["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": (
            "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + "
            "'<|im_end|>\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
        ),
    }


def projector_metadata(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    assert vision is not None
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 1,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "internvl",
        "clip.use_gelu": True,
        "clip.vision.image_size": vision.image_px,
        "clip.vision.patch_size": vision.patch_px,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.num_layers,
        "clip.vision.projection_dim": config.decoder.hidden_size,
        "clip.vision.image_mean": np.array(IMAGENET_MEAN, np.float32),
        "clip.vision.image_std": np.array(IMAGENET_STD, np.float32),
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.attention.layer_norm_epsilon": vision.norm_eps,
        "clip.vision.projector.scale_factor": round(1 / config.downsample_ratio),
    }


def projector_tensors(config: ModelConfig, kind: str) -> list[PlannedTensor]:
    """Every tensor of the tower and the projector; q, k and v apart, as llama.cpp writes them."""
    from ivl.model.build import empty_model

    shapes = {name: tuple(p.shape) for name, p in empty_model(config).named_parameters()}
    tensors = []
    for ours, dims in shapes.items():
        if ours.startswith("decoder."):
            continue
        key = ".".join("{i}" if part.isdigit() else part for part in ours.split("."))
        layer = next((part for part in ours.split(".") if part.isdigit()), "")
        if key in GGUF_VISION_Q_K_V:
            names = GGUF_VISION_Q_K_V[key].names
            dims = (dims[0] // len(names), *dims[1:])
        else:
            names = (GGUF_VISION[key],)
        for name in names:
            tensors.append(
                PlannedTensor(
                    name=name.replace("{i}", layer),
                    format=find_format(_format_of(ours, dims, kind)),
                    shape=dims,
                )
            )
    return tensors


def _format_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1 or name.endswith("position"):
        return "F32"
    return "F16" if len(shape) > 2 else kind


if __name__ == "__main__":
    main()
