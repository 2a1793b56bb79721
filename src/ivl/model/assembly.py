"""From weights, wherever they come from, to a network that is ready to run: one order for all.

What `ivl.load` loads, what a check runs and what `plan --verify` measures is made here, so that all
of them are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ivl.kv import KVType
from ivl.model.build import Progress
from ivl.model.cpu_decoder import use_fused_layers
from ivl.model.cpu_vision import VisionChoice, use_arithmetic
from ivl.model.device_map import DeviceMap
from ivl.model.internvl import InternVL


class WeightSource(Protocol):
    """Files, or a plan that random weights are made for."""

    def build(
        self, *, device: DeviceMap, dtype: torch.dtype, progress: Progress | None = None
    ) -> InternVL:
        """The bare network, its weights where they belong."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where a network runs, and in what it computes; nothing is left to be chosen.

    context: the most tokens of a sequence. kv: what keys and values are kept in. vision: the
    arithmetic of the tower, see `use_arithmetic`.
    """

    device: DeviceMap
    dtype: torch.dtype
    context: int
    kv: KVType
    vision: VisionChoice = "auto"


def assemble(source: WeightSource, how: Arrangement, progress: Progress | None = None) -> InternVL:
    """The network, with everything that makes it fast; errors as of the source's `build` and of
    `use_arithmetic`."""
    network = source.build(device=how.device, dtype=how.dtype, progress=progress)
    network.kv = how.kv
    use_fused_layers(network.decoder)
    network.decoder.use_graphs(how.context)
    use_arithmetic(network, how.vision)
    return network
