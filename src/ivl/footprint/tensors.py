"""Every tensor of a model with its shape and its type, from the configuration alone.

The names are those of GGUF files (`ivl.checkpoint.names` has them beside ours); a model in
safetensors has the same tensors, all of one type.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

from ivl.config import DecoderConfig, ModelConfig, VisionConfig
from ivl.quant.block_sizes import BLOCK_SIZES, gpu_bytes, packed_bytes, stored_bytes
from ivl.quant.mixes import (
    READ_MIXES,
    MixContext,
    decoder_tensors,
    find_mix,
    tensor_type,
    vision_tensor_type,
)

Part = Literal["decoder", "vision", "projector"]
AWQ = "AWQ"
VARYING = ("attn_v", "attn_output", "ffn_down")
"""Tensors whose type may differ from layer to layer (`ivl.quant.mixes`)."""


class TypedTensor(NamedTuple):
    """`shape` is (..., rows, columns), the columns lying next to each other in memory."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def part(self) -> Part:
        return _part_of(self.name)

    @property
    def layer(self) -> int | None:
        """The layer of the decoder or of the tower; None for what stands outside of them."""
        return _layer_of(self.name)

    @property
    def is_embedding(self) -> bool:
        return self.name == "token_embd.weight"

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and self.name != "v.position_embd.weight"

    @property
    def is_plain(self) -> bool:
        """Whether it is not quantized."""
        return not BLOCK_SIZES[self.format].bits

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def file_bytes(self) -> int:
        return _stored_bytes(self.format, self.shape)

    @property
    def packed_bytes(self) -> int:
        """As the kernels for CPUs keep it; what is no matrix is float32 there."""
        if not self.is_matrix:
            return 4 * self.num_weights
        return _packed_bytes(self.format, *self.shape)

    def gpu_bytes(self, itemsize: int) -> int:
        """As the kernels for GPUs keep it; what is not quantized has `itemsize` bytes a number."""
        if not self.is_matrix or self.is_plain:
            return itemsize * self.num_weights
        return _gpu_bytes(self.format, *self.shape)


# A plan asks these tens of thousands of times, about few names and shapes.
_stored_bytes = functools.lru_cache(maxsize=None)(stored_bytes)
_gpu_bytes = functools.lru_cache(maxsize=None)(gpu_bytes)
_packed_bytes = functools.lru_cache(maxsize=None)(packed_bytes)


@functools.cache
def _part_of(name: str) -> Part:
    if name.startswith("v."):
        return "vision"
    return "projector" if name.startswith("mm.") else "decoder"


@functools.cache
def _layer_of(name: str) -> int | None:
    found = re.match(r"(?:v\.)?blk\.(\d+)\.", name)
    return int(found[1]) if found else None


@functools.lru_cache(maxsize=64)
def decoder_plan(config: DecoderConfig, type_name: str) -> tuple[TypedTensor, ...]:
    """The decoder's tensors in a type: a mix (`Q4_K_M`, `BF16` ...) or `AWQ`.

    UnsupportedError for an unknown type.
    """
    shapes = decoder_tensors(config)
    if type_name == AWQ:
        return tuple(TypedTensor(n, shape, _awq_type(n, shape)) for n, shape in shapes.items())
    mix = type_name if type_name in READ_MIXES else find_mix(type_name).name
    context = MixContext.of(config)
    alike: dict[str, str] = {}
    found = []
    for name, shape in shapes.items():
        suffix = name.rpartition(".")[0].rpartition(".")[2]
        if len(shape) < 2:
            kind = "F32"
        elif name.startswith("blk.") and suffix not in VARYING:
            kind = alike.get(suffix) or alike.setdefault(
                suffix, tensor_type(mix, name, shape, context)
            )
        else:
            kind = tensor_type(mix, name, shape, context)
        found.append(TypedTensor(name, shape, kind))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def vision_plan(config: ModelConfig, vision_type: str) -> tuple[TypedTensor, ...]:
    """The tensors of tower and projector, one type for all matrices; none for a text-only model."""
    if config.vision is None:
        return ()
    shapes = tower_tensors(config.vision) | projector_tensors(config)
    return tuple(
        TypedTensor(name, shape, vision_tensor_type(vision_type, name, shape))
        for name, shape in shapes.items()
    )


def tower_tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Names in GGUF and shapes of the vision tower's tensors, q, k and v apart."""
    width, ffn = config.hidden_size, config.intermediate_size
    tensors: dict[str, tuple[int, ...]] = {
        "v.class_embd": (width,),
        "v.position_embd.weight": (1 + config.num_patches, width),
        "v.patch_embd.weight": (width, config.num_channels, config.patch_px, config.patch_px),
        "v.patch_embd.bias": (width,),
    }
    block: dict[str, tuple[int, ...]] = {}
    for norm in ("ln1", "ln2"):
        block[f"{norm}.weight"] = (width,)
        if config.norm == "layer_norm":
            block[f"{norm}.bias"] = (width,)
    for which in ("q", "k", "v"):
        block[f"attn_{which}.weight"] = (width, width)
        if config.qkv_bias:
            block[f"attn_{which}.bias"] = (width,)
    if config.qk_norm:
        block |= {"attn_q_norm.weight": (width,), "attn_k_norm.weight": (width,)}
    block |= {
        "attn_out.weight": (width, width),
        "attn_out.bias": (width,),
        "ls1.weight": (width,),
        "ffn_up.weight": (ffn, width),
        "ffn_up.bias": (ffn,),
        "ffn_down.weight": (width, ffn),
        "ffn_down.bias": (width,),
        "ls2.weight": (width,),
    }
    for layer in range(config.num_layers):
        tensors |= {f"v.blk.{layer}.{name}": shape for name, shape in block.items()}
    return tensors


def projector_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names in GGUF and shapes of the projector's tensors."""
    wide, width = config.shuffled_size, config.decoder.hidden_size
    return {
        "mm.model.mlp.0.weight": (wide,),
        "mm.model.mlp.0.bias": (wide,),
        "mm.model.mlp.1.weight": (width, wide),
        "mm.model.mlp.1.bias": (width,),
        "mm.model.mlp.3.weight": (width, width),
        "mm.model.mlp.3.bias": (width,),
    }


def planned_tensors(
    config: ModelConfig, type_name: str, vision_type: str
) -> tuple[TypedTensor, ...]:
    """What a conversion to these types would write."""
    return (*decoder_plan(config.decoder, type_name), *vision_plan(config, vision_type))


@functools.lru_cache(maxsize=64)
def parameters(config: ModelConfig) -> Mapping[Part, int]:
    """Weights of each part, by the shapes of its tensors."""
    counted: dict[Part, int] = dict.fromkeys(get_args(Part), 0)
    for tensor in planned_tensors(config, "F32", "F32"):
        counted[tensor.part] += tensor.num_weights
    return counted


def num_parameters(config: ModelConfig) -> int:
    """All weights of a model."""
    return sum(parameters(config).values())


def bytes_by_type(tensors: Iterable[TypedTensor]) -> dict[str, int]:
    """Bytes in files by format, the largest first."""
    counted: Counter[str] = Counter()
    for tensor in tensors:
        counted[tensor.format] += tensor.file_bytes
    return dict(counted.most_common())


def _awq_type(name: str, shape: tuple[int, ...]) -> str:
    """AWQ packs the matrices of the layers and leaves all else in 16 bits."""
    is_packed = (
        len(shape) == 2 and name.startswith("blk.") and not shape[-1] % BLOCK_SIZES[AWQ].size
    )
    return AWQ if is_packed else "F16"
