"""The language model: one decoder for Qwen2, InternLM2 and Llama.

They differ in two places only: Qwen2 has biases on q, k and v, and InternLM2 stretches its rotary
base beyond the trained length. InternLM2's packed `wqkv` is taken apart when it is loaded.
Sources: `modeling_qwen2.py` and `modeling_llama.py` of transformers, `modeling_internlm2.py` of
the official repository.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivl.config import DecoderConfig
from ivl.kernels.linear import Linear
from ivl.model.cache import KVCache
from ivl.model.norm import RMSNorm
from ivl.model.rotary import Rotary, rotate


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
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        """(batch, tokens, hidden) -> the same shape; a token sees itself and what is before."""
        # (batch, tokens, width) -> (batch, heads, tokens, head_dim)
        q, k, v = (
            t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for t in (self.q(x), self.k(x), self.v(x))
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = causal_attention(q, k, v)
        return self.o(out.transpose(1, 2).flatten(2))


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
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin, cache, layer)
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
        if config.tied_embeddings:
            self.lm_head.weight = self.embed.weight

    def forward(
        self, x: Tensor, cache: KVCache | None, sequence_length: int | None = None
    ) -> Tensor:
        """Embeddings (batch, tokens, hidden) -> hidden states of the same shape, after the norm.

        With a cache the tokens follow those it holds, and become part of it. `sequence_length`
        is the length of the whole prompt when this is one chunk of it (see `Rotary`); by default
        the sequence ends with these tokens.
        """
        start = cache.length if cache is not None else 0
        end = start + x.shape[1]
        positions = torch.arange(start, end, device=x.device)
        cos, sin = self.rotary(positions, sequence_length or end, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, cache, index)
        if cache is not None:
            cache.advance(end - start)
        return self.norm(x)
