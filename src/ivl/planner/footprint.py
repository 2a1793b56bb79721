"""How many bytes each part of a model takes in memory, for a back end and a kind of device.

The figures of `ivl` on processors follow the code that allocates them, named beside each; those of
llama.cpp and vLLM follow their sources and logs. `bench/plan.py` holds the first against
measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ivl.config import ModelConfig
from ivl.planner.backends import Backend
from ivl.planner.kv_cache import BLOCK_TOKENS
from ivl.planner.tensors import PlannedTensor
from ivl.planner.workload import Workload, kv_bytes_per_layer_token

CHUNK = 512
"""Tokens of a prompt that are read at once, by ivl and llama.cpp alike."""
VLLM_CHUNK = 8192
NUM_SLOTS = 2
"""Layers of a streamed tower that are on the device."""
DENSE_PANEL, DENSE_UNIT = 32, 64
TOKENIZER_BYTES = 640
"""Of a token of the vocabulary: measured with Qwen2's, 93 MiB for 151674."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes. Weights by layer, so that they can be put on several devices."""

    layers: tuple[int, ...]
    embeddings: int
    head: int
    vision: int
    vision_streamed: int
    """Of the tower, what a GPU holds while its layers pass through (ivl.model.streaming)."""
    projector: int
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
    def weights(self) -> int:
        return sum(self.layers) + self.embeddings + self.head + self.vision + self.projector

    @property
    def kv(self) -> int:
        return self.kv_layer * len(self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Resident bytes of weights; see `Footprint`."""

    layers: tuple[int, ...] = ()
    embeddings: int = 0
    head: int = 0
    vision: int = 0
    projector: int = 0


Keeping = Literal["file", "packed", "gpu", "dense", "panels"]
"""How weights are kept: as in the file (llama.cpp, vLLM), in the panels of ivl's kernels, in the
strips of its kernels for GPUs, unpacked to 16 bits (ivl on Apple's GPUs); `panels` is packed with
the tower in float16 panels, as ivl has it on processors with such products
(`ivl.model.cpu_vision`)."""


def keeping_of(
    backend: Backend, tensors: Iterable[PlannedTensor], *, on_gpu: bool, unpacks: bool,
    float16_tower: bool,
) -> Keeping:  # fmt: skip
    """How a back end keeps these tensors. Only a tower of 16 bits or more goes to panels."""
    if backend.name != "ivl":
        return "file"
    if on_gpu:
        return "dense" if unpacks else "gpu"
    tower_is_dense = all(
        t.format in ("F32", "F16", "BF16") for t in tensors if t.part == "vision" and t.is_matrix
    )
    return "panels" if float16_tower and tower_is_dense else "packed"


def weigh(
    tensors: Iterable[PlannedTensor], num_layers: int, keeping: Keeping, itemsize: int = 2
) -> Weights:
    """Adds up the tensors by where they belong. `itemsize`: bytes of a number that is not
    quantized, on GPUs."""
    layers = [0] * num_layers
    rest = {"embeddings": 0, "head": 0, "vision": 0, "projector": 0}
    for tensor in tensors:
        part = tensor.part
        if keeping == "file":
            num_bytes = tensor.file_bytes
        elif keeping == "gpu":
            num_bytes = tensor.gpu_bytes(itemsize)
        elif keeping == "dense":
            num_bytes = tensor.dense_bytes(itemsize)
        elif keeping == "panels" and part == "vision":
            num_bytes = _panel_bytes(tensor)
        else:
            num_bytes = tensor.packed_bytes
        if part != "decoder":
            rest[part] += num_bytes
        elif (layer := tensor.layer) is not None:
            layers[layer] += num_bytes
        else:
            rest["embeddings" if tensor.is_embedding else "head"] += num_bytes
    return Weights(layers=tuple(layers), **rest)


def footprint(
    config: ModelConfig, weights: Weights, work: Workload, backend: Backend, *, keeping: Keeping,
    on_gpu: bool, gpu_itemsize: int = 2,
) -> Footprint:  # fmt: skip
    """All bytes of a model, of which the weights are known. `gpu_itemsize`: bytes of an activation
    on GPUs."""
    tokens = -(-work.context // BLOCK_TOKENS) * BLOCK_TOKENS
    panels = keeping == "panels"
    itemsize = gpu_itemsize if on_gpu else 4
    return Footprint(
        layers=weights.layers,
        embeddings=weights.embeddings,
        head=weights.head,
        vision=weights.vision,
        vision_streamed=_streamed(config, weights.vision),
        projector=weights.projector,
        kv_layer=work.parallel * tokens * kv_bytes_per_layer_token(config, work.kv),
        vision_activations=_vision_activations(config, work, backend, itemsize, panels=panels),
        prefill_activations=_prefill_activations(config, work, backend, itemsize, on_gpu=on_gpu),
        image_features=work.image_tokens(config) * config.decoder.hidden_size * itemsize,
        pixels=_pixels(config, work),
        tokenizer=TOKENIZER_BYTES * config.decoder.vocab_size if backend.name == "ivl" else 0,
    )


def _streamed(config: ModelConfig, vision: int) -> int:
    """Two layers, and what embeds the patches."""
    if config.vision is None:
        return 0
    v = config.vision
    embedded = 2 * v.hidden_size * (3 * v.patch_px**2 + v.num_patches + 2)
    return embedded + NUM_SLOTS * (vision - embedded) // v.num_layers


def _panel_bytes(tensor: PlannedTensor) -> int:
    """A matrix of the tower in float16 panels (`ivl.kernels.dense`); all else is float32."""
    if not tensor.is_matrix:
        return 4 * tensor.num_weights
    rows, columns = tensor.shape
    return 2 * (-(-rows // DENSE_PANEL) * DENSE_PANEL) * (-(-columns // DENSE_UNIT) * DENSE_UNIT)


def _vision_activations(
    config: ModelConfig, work: Workload, backend: Backend, itemsize: int, *, panels: bool
) -> int:
    """The most that is alive while `vision_batch` tiles are in a layer, or in the projector."""
    if config.vision is None or not work.tiles:
        return 0
    v = config.vision
    tiles = 1 if backend.name == "llama.cpp" else min(work.vision_batch, work.num_tiles)
    rows, width, ffn = tiles * (1 + v.num_patches), v.hidden_size, v.intermediate_size
    if panels:
        # x, qkv, the attention's output, and one set of rounded rows (CpuVisionLayer.advance).
        hidden = min(rows, CHUNK) * ffn * (4 + 2)
        layer = rows * width * (4 + 3 * 4 + 4 + 2) + hidden
    elif backend.name == "llama.cpp":
        scores = v.num_heads * (1 + v.num_patches) ** 2 * 4
        layer = rows * (2 * ffn + 6 * width) * 4 + scores
    else:
        # The residual, the normed input, and the MLP's values before and after GELU.
        layer = rows * itemsize * (2 * width + 2 * max(ffn, 2 * width)) + 4 * rows * width
    pixels = 3 * tiles * v.num_channels * v.image_px**2 * itemsize
    tokens = tiles * config.tokens_per_tile
    wide = tokens * (2 * config.shuffled_size + 3 * config.decoder.hidden_size)
    return max(layer, wide * itemsize) + pixels


def _prefill_activations(
    config: ModelConfig, work: Workload, backend: Backend, itemsize: int, *, on_gpu: bool
) -> int:
    """The most that is alive while a chunk of the prompt is in a layer, and the logits."""
    d = config.decoder
    if backend.name == "llama.cpp":
        # llama.cpp reserves logits for every token of a batch.
        return CHUNK * 4 * (d.vocab_size + 2 * d.hidden_size)
    if backend.name == "vllm":
        return (
            VLLM_CHUNK * 2 * (3 * d.intermediate_size + 4 * d.hidden_size) + 256 * 4 * d.vocab_size
        )
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
