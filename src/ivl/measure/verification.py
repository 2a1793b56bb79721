"""Memory and times of a model with random weights at its true shapes, in a process of its own."""

from __future__ import annotations

import os
import resource
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ivl.config import ModelConfig
from ivl.footprint.placement import Placement, Slot
from ivl.footprint.tensors import TypedTensor
from ivl.footprint.workload import Workload

if TYPE_CHECKING:  # torch is imported in the process that measures
    from ivl.model.device_map import DeviceMap

TOKENS = 12
CHUNK = 512


def measure_built(
    config: ModelConfig,
    tensors: Sequence[TypedTensor],
    work: Workload,
    placement: Placement,
    *,
    gpus: Sequence[Slot] = (),
    vision_offload: bool = False,
) -> dict[str, float]:
    """Builds a model of random weights and runs it in this process, which must have done nothing
    else. `gpus`: all of this machine, among which are those of the placement."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts cards
    import torch

    from ivl.kernels.cpu import use_threads
    from ivl.loading import choose_dtype
    from ivl.measure.speed import timed
    from ivl.model.build import PlannedSource
    from ivl.model.source import Arrangement, assemble

    use_threads(None)
    where = _where(placement, gpus, config.decoder.num_layers, vision_offload=vision_offload)
    on_gpu = where.vision.type == "cuda"
    device = torch.device("cuda" if on_gpu else "cpu")
    is_quantized = not all(tensor.is_plain for tensor in tensors)
    dtype = choose_dtype(None, device, is_quantized=is_quantized)
    how = Arrangement(device=where, dtype=dtype, context=work.context, kv=work.kv)
    model = assemble(PlannedSource(config, tuple(tensors)), how)
    ids = torch.arange(work.prompt_tokens(config), device=model.device) % config.decoder.vocab_size
    encode_s, features, tiles = 0.0, None, 0
    with torch.inference_mode():
        if work.num_tiles:
            tiles = min(work.vision_batch, work.num_tiles)
            px = config.tile_px
            pixels = torch.randint(0, 256, (tiles, px, px, 3), dtype=torch.uint8)
            encode_s, features = timed(device, lambda: model.encode_tiles(pixels, tiles))
        places = torch.arange(len(ids), device=model.device)
        num_places = 0 if features is None else features.shape[0] * features.shape[1]
        x = model.embed(ids, places < num_places, features)
        cache = model.new_cache(work.context)
        prefill_s, _ = timed(device, lambda: model.prefill(x, cache, chunk_tokens=CHUNK))
        steps = []
        for _ in range(min(TOKENS, work.context - cache.length)):
            steps.append(timed(device, lambda: model.step(0, cache))[0])
        _touch(cache)
    return {
        "peak_bytes": sum(_peak_bytes(one) for one in _counted(placement, where)),
        "encode_s": encode_s,
        "tiles": tiles,
        "prefill_s": prefill_s,
        "step_s": statistics.median(steps) if steps else float("nan"),
        "is_gpu": device.type == "cuda",
    }


def _where(
    placement: Placement, gpus: Sequence[Slot], num_layers: int, *, vision_offload: bool
) -> DeviceMap:
    """The placement on this machine's cards, in the order of their bus."""
    import torch

    from ivl.model.device_map import DeviceMap, map_of

    used = [share.device for share in placement.shares if share.device.is_gpu]
    if not used or not torch.cuda.is_available():
        return DeviceMap.whole("cpu", num_layers)
    numbers = [i for i, slot in enumerate(gpus) if any(slot.device is d for d in used)]
    cards = [torch.device("cuda", number) for number in numbers]
    return map_of(placement, cards, num_layers, vision_offload=vision_offload)


def _counted(placement: Placement, where: DeviceMap) -> list[Any]:
    """The devices whose memory the placement counts."""
    import torch

    found = {where.vision, where.head, *where.layers} - {torch.device("cpu")}
    on_host = any(not share.device.is_gpu for share in placement.shares)
    return [*sorted(found, key=str), *([torch.device("cpu")] if on_host or not found else [])]


def _touch(cache: Any) -> None:
    """Writes the whole cache, so that it is resident as it will be when a conversation is long."""
    for layer in getattr(cache.store, "layers", ()):
        layer.zero_()


def _peak_bytes(device: Any) -> int:
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        return torch.cuda.max_memory_reserved(device) + max(0, total - free - reserved)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
