"""GGUF pairs of random weights at the true shapes of the family, for measuring.

    python -m bench.random_gguf --shape 4b --type Q4_K_M [--vision F16] FOLDER

Nothing is quantized: each matrix is filled with rows drawn from a few that were, so that a file of
any size takes seconds. The values have the spread of a fresh model's, so activations stay finite.
llama.cpp loads the pairs of the Qwen2 sizes as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.tokenizer_files import write_tokenizer
from ivl.checkpoint.gguf import GGUFTensorSpec
from ivl.checkpoint.gguf_config import mmproj_metadata, text_metadata
from ivl.checkpoint.gguf_writer import GGUFWriter
from ivl.checkpoint.names import vision_sources
from ivl.config import ModelConfig
from ivl.family import find
from ivl.prompt.gguf_tokenizer import tokenizer_metadata
from ivl.quant.formats import find_format
from ivl.quant.mixes import (
    MixContext,
    decoder_tensors,
    find_mix,
    tensor_type,
    vision_file_type,
    vision_tensor_type,
)

NUM_ROWS = 64
ROWS_AT_ONCE = 8192
CHAT_TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1b", help="1b to 78b")
    parser.add_argument("--type", default="Q4_K_M", help="the decoder's mix")
    parser.add_argument("--vision", default="F16", help="the format of the tower's matrices")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for path in write_pair(options.shape, options.type, options.vision, options.folder):
        print(path)


def write_pair(
    shape: str, mix: str, vision: str, folder: Path, *, max_tiles: int | None = None
) -> tuple[Path, Path]:
    """The text file and the projector's; one that is there already is left as it is.

    max_tiles: of an image, as the projector's file shall say; None: the official number.
    """
    size = find(shape)
    if size is None:
        raise SystemExit(f"error: there is no size {shape!r}: 1b, 2b, 4b, 8b, 26b, 38b, 78b")
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"{size.name}-{mix}.gguf"
    tiles = "" if max_tiles is None else f"-{max_tiles}-tiles"
    mmproj = folder / f"{size.name}-mmproj-{vision}{tiles}.gguf"
    config = size.config
    if max_tiles is not None:
        config = dataclasses.replace(config, max_tiles=max_tiles)
    filler = Filler()
    if not text.exists():
        decoder, context = size.decoder, MixContext.of(size.decoder)
        tensors = [
            GGUFTensorSpec(
                name=name, format=find_format(tensor_type(mix, name, dims, context)), shape=dims
            )
            for name, dims in decoder_tensors(decoder).items()
        ]
        metadata = text_metadata(
            size.config,
            tokenizer_entries(decoder.architecture, decoder.vocab_size),
            name="random weights",
            num_weights=num_weights(tensors),
            file_type=find_mix(mix).file_type,
            chat_template=CHAT_TEMPLATE,
        )
        filler.write(text, metadata, tensors)
    if not mmproj.exists():
        tensors = projector_tensors(config, vision)
        metadata = mmproj_metadata(
            config,
            name="random weights",
            num_weights=num_weights(tensors),
            file_type=vision_file_type(vision),
        )
        filler.write(mmproj, metadata, tensors)
    return text, mmproj


class Filler:
    """Fills files with random rows of every format."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._rows: dict[tuple[str, int], np.ndarray] = {}

    def write(self, path: Path, metadata: dict[str, Any], tensors: list[GGUFTensorSpec]) -> None:
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

    def _vector(self, tensor: GGUFTensorSpec) -> np.ndarray:
        length = tensor.shape[-1]
        if tensor.name.endswith(("ls1.weight", "ls2.weight")):
            return np.full((1, length), 0.1, np.float32)
        if tensor.name.endswith("weight"):
            return np.ones((1, length), np.float32)
        return self._rng.standard_normal((1, length), np.float32) * np.float32(0.02)

    def _random_rows(self, tensor: GGUFTensorSpec) -> np.ndarray:
        columns = tensor.shape[-1]
        key = tensor.format.name, columns
        if key not in self._rows:
            inputs = int(np.prod(tensor.shape[1:]))
            weights = self._rng.standard_normal((NUM_ROWS, columns), np.float32)
            self._rows[key] = tensor.format.quantize(weights * np.float32(inputs**-0.5))
        return self._rows[key]


def num_weights(tensors: list[GGUFTensorSpec]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def tokenizer_entries(architecture: str, vocab_size: int) -> dict[str, Any]:
    """Qwen's own tokenizer, or a small one of InternLM2's kind, as the metadata of a file."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(architecture, Path(folder))
        return tokenizer_metadata(Path(folder), vocab_size)


def projector_tensors(config: ModelConfig, kind: str) -> list[GGUFTensorSpec]:
    """Every tensor of the tower and the projector; q, k and v apart, as llama.cpp writes them."""
    from ivl.model.build import empty_model

    shapes = {name: tuple(p.shape) for name, p in empty_model(config).named_parameters()}
    assert config.vision is not None
    sources = vision_sources(config.vision, ())
    tensors = []
    for ours, dims in shapes.items():
        if ours.startswith("decoder."):
            continue
        names = sources[ours].names
        dims = (dims[0] // len(names), *dims[1:])
        for name in names:
            tensors.append(
                GGUFTensorSpec(
                    name=name,
                    format=find_format(vision_tensor_type(kind, name, dims)),
                    shape=dims,
                )
            )
    return tensors


if __name__ == "__main__":
    main()
