"""The decoder's layers on a CPU in one call of the C++ extension (`csrc/decoder.hpp`).

`use_fused_layers` gives a loaded decoder its fused form; the layers stay what they are, and lend it
their weights. Where many tokens are read with plain weights that torch multiplies faster, only the
attention is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

from ivl.config import DecoderConfig
from ivl.kernels import cpu
from ivl.kernels.linear import QuantizedLinear
from ivl.kernels.matrix import DTYPES, CpuFloatMatrix, CpuMatrix, layers_are_faster
from ivl.kv import BLOCK_TOKENS, KVType, kv_bytes_per_token
from ivl.model.cache import KVStore, Segment
from ivl.model.decoder import Decoder, DecoderLayer

HEAD_UNIT = 32
"""Channels of a head must be a multiple of this."""


def use_fused_layers(decoder: Decoder) -> bool:
    """Lets a decoder run those of its first layers that are on the CPU, which may be all, in one
    call; False where that cannot be.

    It cannot be without the extension, with heads of an odd size, and with layers whose weights
    are in no form that our kernels read.
    """
    extension = cpu.extension()
    if extension is None or decoder.config.head_dim % HEAD_UNIT:
        return False
    devices = decoder.layer_devices
    num_layers = next((i for i, d in enumerate(devices) if d.type != "cpu"), len(devices))
    layers = [_checked(layer) for layer in decoder.layers[:num_layers]]
    linears = [linear for layer in layers for linear in _linears(layer)]
    if not layers or not all(_is_readable(linear) for linear in linears):
        return False
    decoder.fused = CpuLayers(decoder, layers, extension)
    return True


class CpuKVStore(KVStore):
    """Keys and values as `csrc/kv_layout.hpp` has them, in bytes (num_blocks, block_bytes) for each
    layer. 16 bits are float16."""

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        kv: KVType,
        *,
        num_layers: int | None = None,
    ) -> None:
        """`num_layers`: of the decoder's first layers; None: all."""
        self.num_blocks, self.kv = num_blocks, kv
        block_bytes = kv_bytes_per_token(config, kv) * BLOCK_TOKENS // config.num_layers
        # Pages are not touched, and take no memory, before something is written or `reserve`d.
        self.layers = [
            torch.empty((num_blocks, block_bytes), dtype=torch.uint8)
            for _ in range(config.num_layers if num_layers is None else num_layers)
        ]
        extension = cpu.loaded()
        assert extension is not None, "there are no fused layers without it"
        self.held = extension.KVBlocks(self.layers, kv, config.num_kv_heads, config.head_dim)

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def reserve(self) -> None:
        for layer in self.layers:
            layer.zero_()


class CpuLayers:
    """The first of a decoder's layers, with its last norm if they are all, over weights that its
    modules keep."""

    def __init__(
        self, decoder: Decoder, layers: Sequence[DecoderLayer], extension: ModuleType
    ) -> None:
        config = decoder.config
        self.num_layers = len(layers)
        self._plain_types: set[torch.dtype] = set()
        self._layers = list(layers)
        self._norm = decoder.norm if len(layers) == len(decoder.layers) else None
        self._fused = extension.Decoder(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.norm_eps,
            [self._describe(layer) for layer in layers],
            None if self._norm is None else _floats(self._norm.weight),
        )

    def extend(self, x: Tensor, segments: Sequence[Segment], cos: Tensor, sin: Tensor) -> Tensor:
        """Embeddings (tokens, hidden) of all segments -> hidden states in the type of x, after the
        norm if these are all layers. cos, sin float32 (tokens, head_dim). Writes the cache, and
        does not advance it."""
        if self._plain_types <= {torch.float32}:
            return self._extend_alike(x, _Call(segments, cos, sin))
        # With weights of 16 bits a prompt is added up otherwise than a few rows. Those who are
        # writing must not be drawn into it, nor a prompt into theirs, by who shares the step.
        prompts = [segment for segment in segments if segment.is_prompt]
        if len(prompts) in (0, len(segments)):
            return self._extend_alike(x, _Call(segments, cos, sin, of_prompt=bool(prompts)))
        sizes = torch.tensor([segment.num_tokens for segment in segments])
        marks = torch.tensor([segment.is_prompt for segment in segments]).repeat_interleave(sizes)
        others = [segment for segment in segments if not segment.is_prompt]
        out = torch.empty_like(x)
        for rows, some, of_prompt in ((marks, prompts, True), (~marks, others, False)):
            call = _Call(some, cos[rows], sin[rows], of_prompt=of_prompt)
            out[rows] = self._extend_alike(x[rows], call)
        return out

    def _extend_alike(self, x: Tensor, call: _Call) -> Tensor:
        types = self._plain_types
        if not all(layers_are_faster(dtype, len(x), call.of_prompt) for dtype in types):
            return self._extend_by_torch(x, call)
        hidden = x.float().contiguous() if x.dtype != torch.float32 else x.clone()
        self._fused.extend(to_dlpack(hidden), *call.arguments())
        return hidden.to(x.dtype)

    def _extend_by_torch(self, x: Tensor, call: _Call) -> Tensor:
        for index, layer in enumerate(self._layers):
            attn, normed = layer.attn, layer.attn_norm(x)
            q, k, v = (linear(normed).float().contiguous() for linear in (attn.q, attn.k, attn.v))
            out = torch.empty_like(q)
            self._fused.attend(index, *map(to_dlpack, (q, k, v)), *call.arguments(), to_dlpack(out))
            x = x + attn.o(out.to(x.dtype))
            x = x + layer.ffn(layer.ffn_norm(x))
        return x if self._norm is None else self._norm(x)

    def _describe(self, layer: DecoderLayer) -> tuple[Any, ...]:
        q, k, v, o, gate, up, down = (self._linear(linear) for linear in _linears(layer))
        attn_norm, ffn_norm = (_floats(norm.weight) for norm in (layer.attn_norm, layer.ffn_norm))
        return (attn_norm, q, k, v, o, ffn_norm, gate, up, down)

    def _linear(self, linear: nn.Module) -> tuple[Any, Tensor | None]:
        """The weight, packed or plain, and the bias."""
        bias = getattr(linear, "bias", None)
        bias = None if bias is None else _floats(bias)
        matrix = getattr(linear, "matrix", None)
        if isinstance(matrix, CpuMatrix):
            return matrix.packed, bias
        weight = linear.weight if matrix is None else matrix.weight
        assert isinstance(weight, Tensor)
        self._plain_types.add(weight.dtype)
        return weight.detach(), bias


class _Call:
    """What one call needs beside hidden states."""

    def __init__(
        self, segments: Sequence[Segment], cos: Tensor, sin: Tensor, *, of_prompt: bool = False
    ) -> None:
        store = segments[0].cache.store.part(0)
        assert isinstance(store, CpuKVStore)
        same = all(segment.cache.store.part(0) is store for segment in segments)
        assert same, "one store for a batch"
        described = [(s.num_tokens, s.cache.length, s.cache.blocks) for s in segments]
        self._rotations = cos.float().contiguous(), sin.float().contiguous()
        self._cache = (described, store.held, of_prompt)
        self.of_prompt = of_prompt

    def arguments(self) -> tuple[Any, ...]:
        """For one call: a capsule can be read once."""
        return (*map(to_dlpack, self._rotations), *self._cache)


def _floats(vector: Tensor) -> Tensor:
    return vector.detach().float().contiguous()


def _checked(layer: nn.Module) -> DecoderLayer:
    assert isinstance(layer, DecoderLayer)
    return layer


def _linears(layer: DecoderLayer) -> list[nn.Module]:
    attn, ffn = layer.attn, layer.ffn
    return [attn.q, attn.k, attn.v, attn.o, ffn.gate, ffn.up, ffn.down]


def _is_readable(linear: nn.Module) -> bool:
    if isinstance(linear, QuantizedLinear):
        return isinstance(linear.matrix, CpuMatrix | CpuFloatMatrix)
    weight = getattr(linear, "weight", None)
    return isinstance(weight, Tensor) and weight.dtype in DTYPES and weight.is_contiguous()
