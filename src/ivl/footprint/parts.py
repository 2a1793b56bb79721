"""How many bytes each part of a model takes in memory on a kind of device: the sum that `ivl load`,
`serve` and `plan` share.

The figures follow the code that allocates them, named beside each. `bench/plan.py` holds those on
processors against measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ivl.config import ModelConfig
from ivl.footprint.tensors import TypedTensor
from ivl.footprint.workload import Workload
from ivl.kv import BLOCK_TOKENS, kv_bytes_per_layer_token

CHUNK = 512
"""Tokens of a prompt that are read at once."""
NUM_SLOTS = 2
"""Layers of a streamed tower that are on the device."""
DENSE_PANEL, DENSE_UNIT = 32, 64
TOKENIZER_BYTES = 640
"""Of a token of the vocabulary: measured with Qwen2's, 93 MiB for 151674."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Resident bytes of weights, by layer, so that they can be put on several devices."""

    layers: tuple[int, ...] = ()
    embeddings: int = 0
    head: int = 0
    vision: int = 0
    projector: int = 0

    @property
    def weights(self) -> int:
        return sum(self.layers) + self.embeddings + self.head + self.vision + self.projector


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint(WeightBytes):
    """All bytes."""

    vision_streamed: int
    """Of the tower, what a GPU holds while its layers pass through (ivl.model.streaming)."""
    kv_layer: int
    """Keys and values of one layer, for all sequences at their whole context."""
    vision_activations: int
    prefill_activations: int
    image_features: int
    pixels: int
    """Decoded images and tiles, in main memory."""
    tokenizer: int
    """In main memory."""

    @property
    def kv(self) -> int:
        return self.kv_layer * len(self.layers)


Keeping = Literal["file", "packed", "gpu", "dense", "panels"]
"""How weights are kept: as in the file (llama.cpp, vLLM), in the panels of ivl's kernels, in the
strips of its kernels for GPUs, unpacked to 16 bits (ivl on Apple's GPUs); `panels` is packed with
the tower in float16 panels, as ivl has it on processors with such products
(`ivl.model.arithmetic`)."""


def weigh(
    tensors: Iterable[TypedTensor], num_layers: int, keeping: Keeping, tower: Keeping,
    itemsize: int | None = None,
) -> WeightBytes:  # fmt: skip
    """Adds up the tensors by where they belong, the tower's kept as `tower` says. `itemsize`: bytes
    of a number that is not quantized; None: on a processor as in the files, on GPUs 2."""
    layers = [0] * num_layers
    rest = {"embeddings": 0, "head": 0, "vision": 0, "projector": 0}
    for tensor in tensors:
        part = tensor.part
        num_bytes = _kept_bytes(tensor, tower if part == "vision" else keeping, itemsize)
        if part != "decoder":
            rest[part] += num_bytes
        elif (layer := tensor.layer) is not None:
            layers[layer] += num_bytes
        else:
            rest["embeddings" if tensor.is_embedding else "head"] += num_bytes
    return WeightBytes(layers=tuple(layers), **rest)


def _kept_bytes(tensor: TypedTensor, keeping: Keeping, itemsize: int | None) -> int:
    if keeping == "file":
        return tensor.file_bytes
    if keeping == "gpu":
        return tensor.gpu_bytes(itemsize or 2)
    if keeping == "dense":
        return tensor.num_weights * (itemsize or 2)
    if keeping == "panels" and tensor.part == "vision":
        return _panel_bytes(tensor)
    if itemsize and tensor.is_matrix and tensor.is_plain:
        return tensor.num_weights * itemsize
    return tensor.packed_bytes


def footprint(
    config: ModelConfig, weights: WeightBytes, work: Workload, *, panels: bool, on_gpu: bool,
    itemsize: int,
) -> Footprint:  # fmt: skip
    """All bytes of a model that ivl runs, of which the weights are known. `panels`: whether the
    tower is in panels; `itemsize`: bytes of an activation."""
    tokens = -(-work.context // BLOCK_TOKENS) * BLOCK_TOKENS
    return Footprint(
        layers=weights.layers,
        embeddings=weights.embeddings,
        head=weights.head,
        vision=weights.vision,
        vision_streamed=_streamed(config, weights.vision),
        projector=weights.projector,
        kv_layer=work.parallel * tokens * kv_bytes_per_layer_token(config.decoder, work.kv),
        vision_activations=_vision_activations(config, work, itemsize, panels=panels),
        prefill_activations=_prefill_activations(config, work, itemsize, on_gpu=on_gpu),
        image_features=work.image_tokens(config) * config.decoder.hidden_size * itemsize,
        pixels=_pixels(config, work),
        tokenizer=TOKENIZER_BYTES * config.decoder.vocab_size,
    )


def _streamed(config: ModelConfig, vision: int) -> int:
    """Two layers, and what embeds the patches."""
    if config.vision is None:
        return 0
    v = config.vision
    embedded = 2 * v.hidden_size * (3 * v.patch_px**2 + v.num_patches + 2)
    return embedded + NUM_SLOTS * (vision - embedded) // v.num_layers


def _panel_bytes(tensor: TypedTensor) -> int:
    """A matrix of the tower in float16 panels (`ivl.kernels.dense`); all else is float32."""
    if not tensor.is_matrix:
        return 4 * tensor.num_weights
    rows, columns = tensor.shape
    return 2 * (-(-rows // DENSE_PANEL) * DENSE_PANEL) * (-(-columns // DENSE_UNIT) * DENSE_UNIT)


def _vision_activations(config: ModelConfig, work: Workload, itemsize: int, *, panels: bool) -> int:
    """The most that is alive while `vision_batch` tiles are in a layer, or in the projector."""
    if config.vision is None or not work.tiles:
        return 0
    v = config.vision
    tiles = min(work.vision_batch, work.num_tiles)
    rows, width, ffn = tiles * (1 + v.num_patches), v.hidden_size, v.intermediate_size
    if panels:
        # x, qkv, the attention's output, and one set of rounded rows (CpuVisionLayer.advance).
        layer = rows * width * (4 + 3 * 4 + 4 + 2) + min(rows, CHUNK) * ffn * (4 + 2)
    else:
        # The residual, the normed input, and the MLP's values before and after GELU.
        layer = rows * itemsize * (2 * width + 2 * max(ffn, 2 * width)) + 4 * rows * width
    return beside_projector(config, layer, tiles, itemsize)


def beside_projector(config: ModelConfig, layer: int, tiles: int, itemsize: int) -> int:
    """The more of a layer's activations and the projector's for some tiles, and their pixels."""
    assert config.vision is not None
    pixels = 3 * tiles * config.vision.num_channels * config.vision.image_px**2 * itemsize
    tokens = tiles * config.tokens_per_tile
    wide = tokens * (2 * config.shuffled_size + 3 * config.decoder.hidden_size)
    return max(layer, wide * itemsize) + pixels


def _prefill_activations(
    config: ModelConfig, work: Workload, itemsize: int, *, on_gpu: bool
) -> int:
    """The most that is alive while a chunk of the prompt is in a layer, and the logits."""
    d = config.decoder
    tokens = min(CHUNK, work.context)
    kv_width = d.num_kv_heads * d.head_dim
    widths = 3 * d.intermediate_size + 3 * d.hidden_size
    prompt = min(work.context, work.prompt_tokens(config)) * d.hidden_size * itemsize
    # On a GPU attention takes one layer's keys and values out of their blocks.
    gathered = work.context * 2 * kv_width * itemsize if on_gpu else 0
    return tokens * widths * itemsize + prompt + gathered + 4 * 4 * d.vocab_size


def _pixels(config: ModelConfig, work: Workload) -> int:
    """An image as it is decoded and enlarged, and its tiles, one byte a value."""
    if config.vision is None or not work.tiles:
        return 0
    tile = config.vision.num_channels * config.vision.image_px**2
    return (work.num_tiles + 2 * max(work.tiles)) * tile
