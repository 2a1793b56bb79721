"""Quantized layers against products with the weights that the package `gguf` dequantizes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from ivl.kernels.dispatch import pack
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.quant.formats import find_format


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "Q5_0", "F16"])
def test_a_layer_multiplies_by_the_dequantized_weights(name: str) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((48, 512), np.float32)
    blocks = find_format(name).quantize(weights)
    exact = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]).copy())
    x, bias = torch.randn(3, 5, 512), torch.randn(48)
    matrix = pack(blocks, name)
    layer = QuantizedLinear(matrix, bias)
    expected = x.double() @ exact.double().T + bias.double()
    error = (layer(x).double() - expected).norm() / expected.norm()
    assert error < (1e-6 if matrix.__class__.__name__ == "ReferenceMatrix" else 2e-2)
    ids = torch.tensor([[3, 0], [47, 3]])
    assert torch.equal(QuantizedEmbedding(matrix, torch.float32)(ids), exact[ids])
