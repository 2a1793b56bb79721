"""Attention over the paged cache against softmax written out, on a GPU or in the interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux only")

from ivl.kernels.triton.attention import PART_TOKENS, paged_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 16


def exact(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """q (heads, head_dim), keys and values (tokens, kv_heads, head_dim), in float64."""
    group = q.shape[0] // keys.shape[1]
    keys, values = (t.double().repeat_interleave(group, dim=1) for t in (keys, values))
    scores = torch.einsum("hd,thd->ht", q.double(), keys) * q.shape[-1] ** -0.5
    return torch.einsum("ht,thd->hd", scores.softmax(-1), values)


class Cache:
    """Keys and values of some sequences, in blocks that are out of order."""

    def __init__(self, lengths: list[int], kv_heads: int, head_dim: int, spread: float) -> None:
        generator = torch.Generator().manual_seed(0)
        counts = [-(-length // BLOCK) for length in lengths]
        order = torch.randperm(sum(counts), generator=generator).tolist()
        self.numbers = torch.randn(
            (2, sum(counts) * BLOCK, kv_heads, head_dim), generator=generator
        ) * spread  # fmt: skip
        self.blocks = [order[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
        self.tables = torch.zeros((len(lengths), max(counts)), dtype=torch.int32)
        for row, blocks in zip(self.tables, self.blocks, strict=True):
            row[: len(blocks)] = torch.tensor(blocks)

    def of(self, sequence: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = torch.tensor(self.blocks[sequence])[:, None] * BLOCK
        places = (blocks + torch.arange(BLOCK)).flatten()[:length]
        return self.numbers[0, places], self.numbers[1, places]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(8, 8, 64), (14, 2, 64), (6, 2, 128), (4, 1, 24)]
)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_one_token_of_each_sequence(
    heads: int, kv_heads: int, head_dim: int, spread: float
) -> None:
    lengths = [1, 45, PART_TOKENS + 3]
    cache = Cache(lengths, kv_heads, head_dim, spread)
    q = torch.randn((3, heads, head_dim), generator=torch.Generator().manual_seed(1))
    found = paged_attention(
        q.to(DEVICE), cache.numbers.to(DEVICE), None, cache.tables.to(DEVICE),
        torch.arange(3, dtype=torch.int32, device=DEVICE),
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        block_tokens=BLOCK, most_tokens=max(lengths),
    ).cpu()  # fmt: skip
    for i, length in enumerate(lengths):
        expected = exact(q[i], *cache.of(i, length)).float()
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4 * spread)


def test_several_tokens_of_one_sequence_see_what_is_before_them() -> None:
    cache = Cache([40, 7], 2, 32, 1.0)
    sees = [37, 38, 39, 40, 7]
    q = torch.randn((5, 4, 32), generator=torch.Generator().manual_seed(1))
    found = paged_attention(
        q.to(DEVICE), cache.numbers.to(DEVICE), None, cache.tables.to(DEVICE),
        torch.tensor([0, 0, 0, 0, 1], dtype=torch.int32, device=DEVICE),
        torch.tensor(sees, dtype=torch.int32, device=DEVICE),
        block_tokens=BLOCK, most_tokens=40,
    ).cpu()  # fmt: skip
    for i, length in enumerate(sees):
        expected = exact(q[i], *cache.of(int(i == 4), length)).float()
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


def test_a_cache_of_8_bits() -> None:
    group, head_dim = 32, 64
    cache = Cache([300], 2, head_dim, 1.0)
    grouped = cache.numbers.unflatten(-1, (-1, group))
    scales = grouped.abs().amax(-1) / 127
    whole = (grouped / scales[..., None]).round().to(torch.int8).flatten(-2)
    q = torch.randn((1, 8, head_dim), generator=torch.Generator().manual_seed(1))
    found = paged_attention(
        q.to(DEVICE), whole.to(DEVICE), scales.to(DEVICE), cache.tables.to(DEVICE),
        torch.zeros(1, dtype=torch.int32, device=DEVICE),
        torch.tensor([300], dtype=torch.int32, device=DEVICE),
        block_tokens=BLOCK, most_tokens=300,
    ).cpu()  # fmt: skip
    cache.numbers = (whole.unflatten(-1, (-1, group)) * scales[..., None]).flatten(-2)
    expected = exact(q[0], *cache.of(0, 300)).float()
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_activations_of_16_bits() -> None:
    cache = Cache([70], 2, 64, 1.0)
    q = torch.randn((1, 8, 64), generator=torch.Generator().manual_seed(1)).half()
    found = paged_attention(
        q.to(DEVICE), cache.numbers.half().to(DEVICE), None, cache.tables.to(DEVICE),
        torch.zeros(1, dtype=torch.int32, device=DEVICE),
        torch.tensor([70], dtype=torch.int32, device=DEVICE),
        block_tokens=BLOCK, most_tokens=70,
    ).cpu()  # fmt: skip
    assert found.dtype == torch.float16
    expected = exact(q[0], *cache.of(0, 70)).float()
    torch.testing.assert_close(found[0].float(), expected, rtol=1e-2, atol=1e-2)
