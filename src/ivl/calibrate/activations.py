"""What goes into the matrices of a decoder layer, gathered while the layer reads sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ivl.model.decoder import DecoderLayer
from ivl.quant.awq import GROUP_SIZE

INPUTS = {"qkv": "attn.q", "o": "attn.o", "gate_up": "ffn.gate", "down": "ffn.down"}
"""The four places where matrices take their inputs, and a module that meets each."""


class Activations:
    """The inputs of matrices, float32, channels last.

    `mean`: mean magnitude (inputs,). `gram`: X^T X within each group of 128 inputs,
    (groups, 128, 128), over all tokens. `sample`: some of the tokens, (n, inputs), evenly spaced.
    """

    def __init__(self, inputs: int, every: int) -> None:
        """`every`: how many tokens apart those of the sample are."""
        self._sum = torch.zeros(inputs, dtype=torch.float64)
        self._count = 0
        self._every, self._rows = every, []
        self.gram = torch.zeros(inputs // GROUP_SIZE, GROUP_SIZE, GROUP_SIZE)

    def add(self, x: Tensor) -> None:
        """x (..., inputs): the inputs of some tokens."""
        x = x.detach().flatten(0, -2).float()
        self._sum += x.abs().sum(0, dtype=torch.float64)
        grouped = x.unflatten(1, (-1, GROUP_SIZE)).transpose(0, 1)
        self.gram.baddbmm_(grouped.transpose(1, 2), grouped)
        self._rows.append(x[-self._count % self._every :: self._every].clone())
        self._count += len(x)

    @property
    def mean(self) -> Tensor:
        return (self._sum / max(1, self._count)).float()

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._rows)


@contextmanager
def gathering(layer: DecoderLayer, every: int) -> Iterator[Mapping[str, Activations]]:
    """While it is open, what the layer computes on is added up, by the names of `INPUTS`."""
    found: dict[str, Activations] = {}
    hooks = []
    for name, path in INPUTS.items():
        module = layer.get_submodule(path)
        assert isinstance(module, nn.Linear)
        found[name] = Activations(module.in_features, every)

        def add(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            found[name].add(args[0])

        hooks.append(module.register_forward_pre_hook(add))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
