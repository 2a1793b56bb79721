"""Attention of a few new tokens to the paged cache, long contexts in parts.

Every part of a context is a program of its own, which leaves its largest score, the sum of its
weights and its weighted values; a second kernel puts the parts of a head together. Source:
Flash-Decoding (Dao, Haziza, Massa and Sizov, 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
The cache is that of `ivl.model.cache.TorchKVStore`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ivl.kernels.triton import Kernel

TILE = 32
"""Tokens of the cache that are looked at at once."""
PART_TOKENS = 256
MOST_PARTS = 64
LEAST_ROWS = 16
"""Of a product on tensor cores."""


@triton.jit
def _attend(
    q, numbers, scales, tables, sequences, lengths, tops, sums, values, factor, num_places,
    kv_heads, max_blocks, part_tokens, num_parts,
    group: tl.constexpr, rows: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr,
    block_tokens: tl.constexpr, scale_group: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """One token, one key/value head with the `group` query heads that share it, one part."""
    token, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + token)
    table = tables + tl.load(sequences + token).to(tl.int64) * max_blocks
    g, d = tl.arange(0, rows), tl.arange(0, width)
    heads = kv_heads * group
    q_place = (token.to(tl.int64) * heads + head * group + g[:, None]) * head_dim + d[None, :]
    q_mask = (g < group)[:, None] & (d < head_dim)[None, :]
    query = tl.load(q + q_place, mask=q_mask, other=0.0)
    top = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    value = tl.zeros((rows, width), tl.float32)
    first = part * part_tokens
    for start in range(first, tl.minimum(first + part_tokens, length), tile):
        t = start + tl.arange(0, tile)
        there = (t < length) & (t < first + part_tokens)
        block = tl.load(table + t // block_tokens, mask=there, other=0).to(tl.int64)
        place = (block * block_tokens + t % block_tokens) * kv_heads + head
        at = place[:, None] * head_dim + d[None, :]
        inside = there[:, None] & (d < head_dim)[None, :]
        k = tl.load(numbers + at, mask=inside, other=0)
        v = tl.load(numbers + num_places * kv_heads * head_dim + at, mask=inside, other=0)
        if scale_group > 0:
            per_head: tl.constexpr = head_dim // scale_group
            scale_at = place[:, None] * per_head + d[None, :] // scale_group
            k_scale = tl.load(scales + scale_at, mask=inside, other=0.0)
            v_scale = tl.load(
                scales + num_places * kv_heads * per_head + scale_at, mask=inside, other=0.0
            )
            k, v = k.to(tl.float32) * k_scale, v.to(tl.float32) * v_scale
        k, v = k.to(query.dtype), v.to(query.dtype)
        score = tl.dot(query, tl.trans(k), input_precision="ieee") * factor
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        value = value * shrink[:, None]
        value = tl.dot(weight.to(v.dtype), v, value, input_precision="ieee")
        top = higher
    kept = (token.to(tl.int64) * heads + head * group + g) * num_parts + part
    tl.store(tops + kept, top, mask=g < group)
    tl.store(sums + kept, total, mask=g < group)
    tl.store(values + kept[:, None] * head_dim + d[None, :], value, mask=q_mask)


@triton.jit
def _join(
    tops, sums, values, out, num_parts, head_dim: tl.constexpr, width: tl.constexpr,
    parts: tl.constexpr,
):  # fmt: skip
    """The parts of one head of one token together."""
    row = tl.program_id(0).to(tl.int64)
    p, d = tl.arange(0, parts), tl.arange(0, width)
    there = p < num_parts
    top = tl.load(tops + row * num_parts + p, mask=there, other=float("-inf"))
    factor = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(tl.load(sums + row * num_parts + p, mask=there, other=0.0) * factor, axis=0)
    at = (row * num_parts + p[:, None]) * head_dim + d[None, :]
    value = tl.load(values + at, mask=there[:, None] & (d < head_dim)[None, :], other=0.0)
    result = tl.sum(value * factor[:, None], axis=0) / total
    tl.store(out + row * head_dim + d, result.to(out.dtype.element_ty), mask=d < head_dim)


# To a type checker they are the functions that Triton compiles.
attend: Kernel = _attend
join: Kernel = _join


def paged_attention(
    q: Tensor,
    numbers: Tensor,
    scales: Tensor | None,
    tables: Tensor,
    sequences: Tensor,
    lengths: Tensor,
    *,
    block_tokens: int,
    most_tokens: int,
) -> Tensor:
    """q (tokens, heads, head_dim) -> the same shape, float32 or 16 bits.

    numbers (2, places, kv_heads, head_dim): keys, then values, of one layer; with scales (2,
    places, kv_heads, groups) they are int8. tables int32 (sequences, blocks): the blocks of each
    sequence, `block_tokens` tokens in each. sequences, lengths int32 (tokens,): whose token it is,
    and how many of that sequence's tokens it sees, itself among them, 1 to `most_tokens`.
    """
    tokens, heads, head_dim = q.shape
    _, places, kv_heads, _ = numbers.shape
    group = heads // kv_heads
    num_parts = max(1, min(MOST_PARTS, -(-most_tokens // PART_TOKENS)))
    part_tokens = -(-most_tokens // (num_parts * TILE)) * TILE
    width = triton.next_power_of_2(head_dim)
    shape = (tokens * heads, num_parts)
    tops, sums = (torch.empty(shape, dtype=torch.float32, device=q.device) for _ in range(2))
    values = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not tokens:
        return out
    with torch.cuda.device_of(q):
        attend[(tokens, kv_heads, num_parts)](
            q.contiguous(), numbers, numbers if scales is None else scales, tables, sequences,
            lengths, tops, sums, values, head_dim**-0.5, places, kv_heads, tables.shape[1],
            part_tokens, num_parts,
            group=group, rows=max(LEAST_ROWS, triton.next_power_of_2(group)), head_dim=head_dim,
            width=max(LEAST_ROWS, width), block_tokens=block_tokens,
            scale_group=0 if scales is None else head_dim // scales.shape[-1], tile=TILE,
            num_warps=4,
        )  # fmt: skip
        join[(tokens * heads,)](
            tops, sums, values, out, num_parts, head_dim=head_dim, width=max(LEAST_ROWS, width),
            parts=triton.next_power_of_2(num_parts), num_warps=4,
        )  # fmt: skip
    return out
