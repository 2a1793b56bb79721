"""Which device holds what of a model that is spread over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ivl.footprint.placement import PROJECTOR, Placement

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """embeddings: where token ids are looked up. layers: where each layer of the decoder runs, and
    its keys and values are. head: of the last norm and the logits. vision: where tiles are encoded.

    With `vision_offload` the weights of the tower's layers stay in main memory and pass through
    `vision` while a page is encoded (`ivl.model.streaming`).
    """

    embeddings: torch.device
    layers: tuple[torch.device, ...]
    head: torch.device
    vision: torch.device
    vision_offload: bool = False

    @classmethod
    def whole(cls, device: torch.device | str, num_layers: int) -> DeviceMap:
        """All on one device."""
        one = torch.device(device)
        return cls(embeddings=one, layers=(one,) * num_layers, head=one, vision=one)

    @property
    def is_whole(self) -> bool:
        places = {self.embeddings, *self.layers, self.head, self.vision}
        return len(places) == 1 and not self.vision_offload

    def of(self, name: str) -> torch.device:
        """Where the parameter of that name is kept."""
        part, _, rest = name.partition(".")
        if part != "decoder":
            stays = self.vision_offload and name.startswith("vision.layers.")
            return CPU if stays else self.vision
        if rest.startswith("embed."):
            return self.embeddings
        if rest.startswith("layers."):
            return self.layers[int(rest.split(".")[1])]
        return self.head


def as_map(device: DeviceMap | torch.device | str, num_layers: int) -> DeviceMap:
    """`device` itself, or all of a decoder of `num_layers` layers on one device."""
    return device if isinstance(device, DeviceMap) else DeviceMap.whole(device, num_layers)


def map_of(
    placement: Placement,
    devices: Sequence[torch.device],
    num_layers: int,
    *,
    vision_offload: bool = False,
) -> DeviceMap:
    """A placement, whose GPUs are `devices` in their order, as the loader takes it."""
    shares = [share for share in placement.shares if share.device.is_gpu]
    if len(shares) < len(devices):  # all on the one that has the most room
        [share] = shares
        devices = [d for d in devices if share.device.name.endswith(f" {d}")] or devices[:1]
    layers = [CPU] * num_layers
    for share, device in zip(shares, devices, strict=True):
        last = share.first_layer + share.num_layers
        layers[share.first_layer : last] = [device] * share.num_layers
    tower = next(
        (d for share, d in zip(shares, devices, strict=True) if PROJECTOR in share.items),
        devices[0],
    )
    whole = set(layers) == {devices[0]}
    return DeviceMap(
        embeddings=devices[0] if whole and len(devices) == 1 and not vision_offload else CPU,
        layers=tuple(layers),
        head=devices[-1],
        vision=tower,
        vision_offload=vision_offload,
    )
