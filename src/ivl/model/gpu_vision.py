"""The vision tower on a GPU in int8 or 8-bit floats: its products alone, on tensor cores."""

from __future__ import annotations

from torch import nn

from ivl.errors import UnsupportedError
from ivl.kernels.narrow_linear import Narrow, NarrowLinear
from ivl.model.vision import VisionAttention, VisionMLP, VisionTower


def use_narrow(tower: nn.Module, kind: Narrow) -> None:
    """Replaces the products of a tower of plain weights, one by one. UnsupportedError for another,
    and for one that is streamed."""
    parts = [part for part in tower.modules() if isinstance(part, VisionAttention | VisionMLP)]
    places = [
        (part, name)
        for part in parts
        for name in (("qkv", "proj") if isinstance(part, VisionAttention) else ("fc1", "fc2"))
    ]
    if not isinstance(tower, VisionTower) or tower.streamed is not None:
        raise UnsupportedError(
            f"A streamed vision tower does not run in {kind}.", "Leave one of the two out."
        )
    if not all(NarrowLinear.can_be(getattr(part, name)) for part, name in places):
        raise UnsupportedError(
            f"This vision tower cannot run in {kind}: its weights are quantized, or of odd shapes.",
            "Take one of 16 bits, or leave the choice out.",
        )
    for part, name in places:
        setattr(part, name, NarrowLinear(getattr(part, name), kind))
