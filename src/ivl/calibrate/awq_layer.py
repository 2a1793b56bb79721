"""One decoder layer made ready for AWQ: scales searched for and folded, ranges clipped, rounded.

Scales are folded into what comes before, so that the layer computes the same and needs no new
operation:

    attn_norm -> q, k, v      the norm's weight is divided, columns of q, k and v are multiplied
    v -> o                    rows of v are divided; query heads of one group share their scales
    ffn_norm -> gate, up      as attn_norm
    up -> down                rows of up are divided: down's input is silu(gate) * up
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ivl.calibrate.activations import Activations
from ivl.calibrate.awq_search import round_groups, search_scales, search_shrinks
from ivl.config import DecoderConfig
from ivl.model.decoder import DecoderLayer
from ivl.model.norm import RMSNorm
from ivl.quant.awq import GROUP_SIZE, Groups, join_groups
from ivl.quant.block_format import Bytes

MATRICES = {
    "attn.q": "qkv", "attn.k": "qkv", "attn.v": "qkv", "attn.o": "o",
    "ffn.gate": "gate_up", "ffn.up": "gate_up", "ffn.down": "down",
}  # fmt: skip
"""The matrices of a layer, and where they take their inputs."""

NOT_CLIPPED = ("attn.q", "attn.k")
"""An error here is multiplied by another one before the softmax; the paper leaves these alone."""


def fold_scales(
    layer: DecoderLayer,
    inputs: Mapping[str, Activations],
    config: DecoderConfig,
    norm_dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Searches for scales and folds them into the layer (float32), in place.

    Norms are rounded to `norm_dtype`, in which they will be stored; the scales that remain after
    the rounding are those that the matrices get. Returns the scales (inputs,) by place.
    """
    attn, ffn = layer.attn, layer.ffn

    def tie_heads(values: Tensor) -> Tensor:
        heads = values.unflatten(0, (config.num_kv_heads, -1, config.head_dim))
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()

    qkv = [attn.q.weight, attn.k.weight, attn.v.weight]
    gate_up = [ffn.gate.weight, ffn.up.weight]
    scales = {
        "qkv": search_scales(qkv, inputs["qkv"]),
        "o": search_scales([attn.o.weight], inputs["o"], tie_heads),
        "gate_up": search_scales(gate_up, inputs["gate_up"]),
        "down": search_scales([ffn.down.weight], inputs["down"]),
    }
    scales["qkv"] = _divide_norm(layer.attn_norm, scales["qkv"], norm_dtype)
    scales["gate_up"] = _divide_norm(layer.ffn_norm, scales["gate_up"], norm_dtype)
    for matrices, name in ((qkv, "qkv"), (gate_up, "gate_up")):
        for matrix in matrices:
            matrix.data *= scales[name]
    of_heads = scales["o"].unflatten(0, (config.num_kv_heads, -1, config.head_dim))
    _divide_rows(attn.v, of_heads[:, 0].flatten())
    attn.o.weight.data *= scales["o"]
    _divide_rows(ffn.up, scales["down"])
    ffn.down.weight.data *= scales["down"]
    return scales


def round_matrices(
    layer: DecoderLayer, inputs: Mapping[str, Activations], scales: Mapping[str, Tensor]
) -> dict[str, Bytes]:
    """The matrices of a layer whose scales are folded, as blocks uint8 (rows, row_bytes)."""
    blocks = {}
    for name, place in MATRICES.items():
        weight = matrix_of(layer, name)
        shrink: Tensor | float = 1.0
        if name not in NOT_CLIPPED:
            by_group = scales[place].unflatten(0, (-1, GROUP_SIZE))
            # The activations were gathered before they were divided by the scales.
            gram = inputs[place].gram / (by_group[:, :, None] * by_group[:, None, :])
            shrink = search_shrinks(weight, gram)
        blocks[name] = to_blocks(weight, shrink)
    return blocks


def matrix_of(layer: DecoderLayer, name: str) -> Tensor:
    """The weight (rows, inputs) of one of `MATRICES`."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, torch.nn.Linear)
    return linear.weight.data


def to_blocks(weight: Tensor, shrink: Tensor | float = 1.0) -> Bytes:
    """Rounds weights (rows, inputs) to blocks of the format `AWQ`, uint8 (rows, row_bytes)."""
    levels, scales, zeros = (part.numpy() for part in round_groups(weight, shrink))
    groups = Groups(levels.astype(np.uint8), scales, zeros.astype(np.uint8))
    return join_groups(groups).reshape(len(weight), -1)


def _divide_norm(norm: RMSNorm, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Divides a norm's weight and rounds it; returns by how much it then really is divided."""
    before = norm.weight.data
    stored = (before / scales).to(dtype).float()
    norm.weight.data = stored
    usable = (stored != 0) & stored.isfinite()
    return torch.where(usable, before / torch.where(usable, stored, 1.0), 1.0)


def _divide_rows(linear: torch.nn.Linear, scales: Tensor) -> None:
    linear.weight.data /= scales[:, None]
    if linear.bias is not None:
        linear.bias.data /= scales
