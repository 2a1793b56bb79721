"""The language model: one decoder for Qwen2, InternLM2 and Llama.

They differ in two places only: Qwen2 has biases on q, k and v, and InternLM2 stretches its rotary
base beyond the trained length. InternLM2's packed `wqkv` is taken apart when it is loaded.
Sources: `modeling_qwen2.py` and `modeling_llama.py` of transformers, `modeling_internlm2.py` of
the official repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivl.config import DecoderConfig
from ivl.kernels import dispatch
from ivl.kernels.linear import Linear, RMSNorm
from ivl.model.cache import Segment, TorchKVStore
from ivl.model.graphs import Capture, PagedBatch, StepGraphs


class FusedLayers(Protocol):
    """The first `num_layers` layers in one call, with the last norm if they are all."""

    num_layers: int

    def extend(self, x: Tensor, segments: Sequence[Segment], cos: Tensor, sin: Tensor) -> Tensor:
        """As of `Decoder.extend`, without moving the cache on; cos, sin float32 (tokens,
        head_dim)."""
        ...


class Rotary(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta
        self.dim = config.head_dim
        self.factor = config.rope_factor
        self.trained_length = config.max_position_embeddings
        self._known: tuple[float, torch.device, Tensor] | None = None
        """The frequencies that were asked for last, with their base and device."""

    def base(self, length: int) -> float:
        """The rotary base for a sequence of `length` tokens."""
        if self.factor is None or length <= self.trained_length:
            return self.theta
        growth = self.factor * length / self.trained_length - (self.factor - 1)
        return self.theta * growth ** (self.dim / (self.dim - 2))

    def forward(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (..., tokens) int64 -> cosine and sine, each (..., tokens, head_dim).

        `length` is that of the sequence which the positions belong to: the whole prompt while it
        is being read, so that reading it in chunks rotates as reading it at once does.
        """
        angle = positions[..., None].float() * self._frequencies(
            self.base(length), positions.device
        )
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def _frequencies(self, base: float, device: torch.device) -> Tensor:
        """float32 (head_dim / 2,): turns of each pair from one position to the next."""
        if self._known is None or self._known[:2] != (base, device):
            with torch.inference_mode(False):  # whoever asks next may not be in that mode
                exponent = torch.arange(0, self.dim, 2, dtype=torch.float32, device=device)
                self._known = base, device, 1.0 / base ** (exponent / self.dim)
        return self._known[2]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates (batch, heads, tokens, head_dim); the halves of head_dim form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


Segments = Sequence[Segment] | PagedBatch
"""What a forward pass reads; () when there is no cache."""


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        q_width = config.num_heads * config.head_dim
        self.q = Linear(config.hidden_size, q_width, bias=config.qkv_bias)
        self.k = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o = Linear(q_width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments, layer: int
    ) -> Tensor:
        """(batch, tokens, hidden) -> the same shape; a token sees itself and what is before.

        With segments the batch is 1 and holds their tokens, one after another.
        """
        # (batch, tokens, width) -> (batch, heads, tokens, head_dim)
        q, k, v = (
            t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for t in (self.q(x), self.k(x), self.v(x))
        )
        if isinstance(segments, PagedBatch):
            q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))
            return self.o(segments.attend(layer, q, k, v, cos, sin).flatten(1)[None])
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if not segments:
            out = causal_attention(q, k, v)
        else:
            sizes = [segment.num_tokens for segment in segments]
            parts = zip(segments, *(t.split(sizes, dim=2) for t in (q, k, v)), strict=True)
            out = torch.cat([_attend_cached(layer, *part) for part in parts], dim=2)
        return self.o(out.transpose(1, 2).flatten(2))


def _attend_cached(layer: int, segment: Segment, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One segment's attention to its cache and to itself; (1, heads, tokens, head_dim) each."""
    store = segment.cache.store.part(layer)
    assert isinstance(store, TorchKVStore)
    k, v = store.update(layer, segment.cache, k[0].transpose(0, 1), v[0].transpose(0, 1))
    return causal_attention(q, k.transpose(0, 1)[None], v.transpose(0, 1)[None])


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Grouped-head attention whose queries are the last tokens of the keys' sequence.

    q (batch, heads, tokens, head_dim); k, v (batch, kv_heads, total, head_dim), total >= tokens.
    """
    tokens, total = q.shape[2], k.shape[2]
    if tokens == 1:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    if tokens == total:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    mask = torch.ones(tokens, total, dtype=torch.bool, device=q.device).tril(total - tokens)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        if dispatch.runs_triton(x.device):
            from ivl.kernels.triton.pointwise import swiglu

            return self.down(swiglu(gate, up))
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments, layer: int
    ) -> Tensor:
        attended = self.attn(self.attn_norm(x), cos, sin, segments, layer)
        if dispatch.runs_triton(x.device):
            from ivl.kernels.triton.pointwise import add_rms_norm

            x, normed = add_rms_norm(x, attended, self.ffn_norm.weight, self.ffn_norm.eps)
            return x + self.ffn(normed)
        x = x + attended
        return x + self.ffn(self.ffn_norm(x))


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.fused: FusedLayers | None = None
        self.graphs: StepGraphs | None = None
        if config.tied_embeddings:
            self.lm_head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Whole sequences (batch, tokens, hidden) of embeddings -> hidden states after the norm."""
        positions = torch.arange(x.shape[1], device=x.device)
        cos, sin = self.rotary(positions, x.shape[1], x.dtype)
        return self._run(x, cos, sin, ())

    def extend(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Embeddings (tokens, hidden) of all segments, one after another -> hidden states (tokens,
        hidden) after the norm. The tokens become part of the segments' caches.

        CapacityError, and nothing changed, when a cache is too small.
        """
        for segment in segments:
            segment.cache.require(segment.num_tokens)
        if self.fused is not None:
            x = self.fused.extend(x, segments, *self.rotations(segments, torch.float32))
        if self.num_fused < len(self.layers):
            cos, sin = self.rotations(segments, x.dtype)
            if self.graphs is not None and self.graphs.takes(segments):
                x = self.graphs.step(self._step, x, segments, cos, sin)
            else:
                x = self._run(x[None], cos, sin, segments, self.num_fused)[0]
        for segment in segments:
            segment.cache.advance(segment.num_tokens)
        return x

    def use_graphs(self, context: int, capture: Capture | None = None) -> bool:
        """Lets single steps of sequences of up to `context` tokens run as graphs; False where that
        cannot be: with layers on several devices, or on one without graphs."""
        devices = set(self.layer_devices)
        device = devices.pop()
        if devices or self.norm.weight.device != device or not dispatch.runs_triton(device):
            return False
        self.graphs = StepGraphs(
            hidden_size=self.config.hidden_size, head_dim=self.config.head_dim,
            context=context, device=device, dtype=self.norm.weight.dtype, capture=capture,
        )  # fmt: skip
        return True

    def _step(self, x: Tensor, cos: Tensor, sin: Tensor, batch: PagedBatch) -> Tensor:
        wide = x[None]
        for index, layer in enumerate(self.layers):
            wide = layer(wide, cos, sin, batch, index)
        return self.norm(wide)[0]

    @property
    def num_fused(self) -> int:
        """How many of the first layers run in one call on the CPU."""
        return 0 if self.fused is None else self.fused.num_layers

    @property
    def layer_devices(self) -> list[torch.device]:
        """Where each layer runs."""
        return [_device_of(layer) for layer in self.layers]

    def _run(
        self, x: Tensor, cos: Tensor, sin: Tensor, segments: Sequence[Segment], first: int = 0
    ) -> Tensor:
        """The layers from `first` on, each on its device, and the norm. The hidden states move
        where a layer is on another device than the one before."""
        batch: Segments = segments
        for index in range(first, len(self.layers)):
            layer = self.layers[index]
            device = _device_of(layer)
            if index == first or device != x.device:
                x, cos, sin = (t.to(device) for t in (x, cos, sin))
                batch = PagedBatch.of(segments, device) or segments
            x = layer(x, cos, sin, batch, index)
        return self.norm(x.to(self.norm.weight.device))

    def rotations(self, segments: Sequence[Segment], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all segments' tokens, (tokens, head_dim) each."""
        device = _device_of(self.layers[0])
        # One call for all that turn by the same base: for a step of many rows the calls would
        # take as long as its layers.
        alike: list[tuple[int, list[int]]] = []
        for segment in segments:
            length = segment.sequence_length or segment.end
            places = range(segment.cache.length, segment.end)
            if alike and self.rotary.base(alike[-1][0]) == self.rotary.base(length):
                alike[-1][1].extend(places)
            else:
                alike.append((length, list(places)))
        pairs = [
            self.rotary(torch.tensor(places, device=device), length, dtype)
            for length, places in alike
        ]
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([cos for cos, _ in pairs]), torch.cat([sin for _, sin in pairs])


def _device_of(layer: nn.Module) -> torch.device:
    assert isinstance(layer, DecoderLayer)
    return layer.attn_norm.weight.device
