"""The attention that training uses is the one that the model is run with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training.attention import plain_attention, written_out


@pytest.mark.parametrize("causal", [False, True])
def test_it_computes_what_pytorch_computes(causal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 4, 9, 8, generator=generator)
    k, v = (torch.randn(2, 2, 9, 8, generator=generator) for _ in range(2))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    with written_out():
        assert F.scaled_dot_product_attention is plain_attention
        found = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert F.scaled_dot_product_attention is not plain_attention
    torch.testing.assert_close(found, expected)
