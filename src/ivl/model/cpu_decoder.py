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

from ivl.config import DecoderConfig
from ivl.kernels import cpu
from ivl.kernels.cpu_matrix import CpuFloatMatrix, CpuMatrix
from ivl.kernels.float_linear import DTYPE_NUMBERS, FEW_ROWS, ours_is_faster
from ivl.kernels.linear import QuantizedLinear
from ivl.model.cache import KVStore, Segment
from ivl.model.decoder import Decoder, DecoderLayer
from ivl.planner.kv_cache import BLOCK_TOKENS, KVType, kv_bytes_per_token

_KV_NUMBERS: dict[KVType, int] = {"32bit": 0, "16bit": 1, "8bit": 2}
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
    decoder.fused = FusedLayers(decoder, layers, extension)
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
        self.addresses = [layer.data_ptr() for layer in self.layers]

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def reserve(self) -> None:
        for layer in self.layers:
            layer.zero_()

    def copy_block(self, source: int, target: int) -> None:
        for layer in self.layers:
            layer[target] = layer[source]


class FusedLayers:
    """The first of a decoder's layers, with its last norm if they are all, over weights that its
    modules keep."""

    def __init__(
        self, decoder: Decoder, layers: Sequence[DecoderLayer], extension: ModuleType
    ) -> None:
        config = decoder.config
        self.num_layers = len(layers)
        self._kept: list[Any] = []
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
            0 if self._norm is None else self._numbers(self._norm.weight),
        )

    def extend(self, x: Tensor, segments: Sequence[Segment], cos: Tensor, sin: Tensor) -> Tensor:
        """Embeddings (tokens, hidden) of all segments -> hidden states in the type of x, after the
        norm if these are all layers. cos, sin float32 (tokens, head_dim). Writes the cache, and
        does not advance it."""
        call = _Call(segments, cos, sin)
        if len(x) > FEW_ROWS and not all(ours_is_faster(dtype) for dtype in self._plain_types):
            return self._extend_by_torch(x, call)
        hidden = x.float().contiguous() if x.dtype != torch.float32 else x.clone()
        self._fused.extend(hidden.data_ptr(), len(hidden), *call.rotations, *call.cache)
        return hidden.to(x.dtype)

    def _extend_by_torch(self, x: Tensor, call: _Call) -> Tensor:
        for index, layer in enumerate(self._layers):
            attn, normed = layer.attn, layer.attn_norm(x)
            q, k, v = (linear(normed).float().contiguous() for linear in (attn.q, attn.k, attn.v))
            out = torch.empty_like(q)
            self._fused.attend(
                index, q.data_ptr(), k.data_ptr(), v.data_ptr(), len(x), *call.rotations,
                *call.cache, out.data_ptr(),
            )  # fmt: skip
            x = x + attn.o(out.to(x.dtype))
            x = x + layer.ffn(layer.ffn_norm(x))
        return x if self._norm is None else self._norm(x)

    def _describe(self, layer: DecoderLayer) -> tuple[Any, ...]:
        q, k, v, o, gate, up, down = (self._linear(linear) for linear in _linears(layer))
        attn_norm, ffn_norm = (
            self._numbers(norm.weight) for norm in (layer.attn_norm, layer.ffn_norm)
        )
        return (attn_norm, q, k, v, o, ffn_norm, gate, up, down)

    def _linear(self, linear: nn.Module) -> tuple[Any, ...]:
        """(packed matrix, plain numbers, their type, rows, columns, bias)"""
        bias = getattr(linear, "bias", None)
        bias_at = 0 if bias is None else self._numbers(bias)
        matrix = getattr(linear, "matrix", None)
        if isinstance(matrix, CpuMatrix):
            return (matrix.packed, 0, 0, matrix.rows, matrix.columns, bias_at)
        weight = linear.weight if matrix is None else matrix.weight
        assert isinstance(weight, Tensor)
        self._kept.append(weight)
        self._plain_types.add(weight.dtype)
        return (None, weight.data_ptr(), DTYPE_NUMBERS[weight.dtype], *weight.shape, bias_at)

    def _numbers(self, vector: Tensor) -> int:
        """Address of a vector in float32, kept."""
        self._kept.append(vector.detach().float().contiguous())
        return self._kept[-1].data_ptr()


class _Call:
    """What one call needs beside hidden states, kept while it runs."""

    def __init__(self, segments: Sequence[Segment], cos: Tensor, sin: Tensor) -> None:
        store = segments[0].cache.store.part(0)
        assert isinstance(store, CpuKVStore)
        same = all(segment.cache.store.part(0) is store for segment in segments)
        assert same, "one store for a batch"
        self._kept = [cos.float().contiguous(), sin.float().contiguous()]
        self.rotations = tuple(tensor.data_ptr() for tensor in self._kept)
        described = []
        for segment in segments:
            blocks = torch.tensor(segment.cache.blocks, dtype=torch.int32)
            self._kept.append(blocks)
            described.append((segment.num_tokens, segment.cache.length, blocks.data_ptr()))
        self.cache = (described, _KV_NUMBERS[store.kv], store.addresses)


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
    return isinstance(weight, Tensor) and weight.dtype in DTYPE_NUMBERS and weight.is_contiguous()
