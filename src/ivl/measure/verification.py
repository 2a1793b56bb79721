"""A plan against the machine: the model with random weights at its true shapes, in its own process.

Of a model that does not fit, as many layers as do are built; what is left out is added as planned,
and times are scaled by the work that was left out. The result says so.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from ivl import __version__
from ivl.errors import CapacityError, ConfigError, UnsupportedError
from ivl.planner.machine import processor_name
from ivl.planner.plan import Plan, Subject, make_plan
from ivl.planner.speed import Estimate
from ivl.planner.tensors import PlannedTensor

if TYPE_CHECKING:  # torch is imported in the process that measures
    from ivl.model.devices import DeviceMap

TOKENS = 12
CHUNK = 512
GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes, seconds, tokens a second, as measured and scaled to the whole model."""

    ivl: str
    date: str
    processor: str
    system: str
    device: str
    model: str
    type: str
    layers: int
    layers_built: int
    tiles_encoded: int
    peak_bytes: int
    planned_bytes: int
    tokens_per_s: float
    tokens_per_s_planned: dict[str, Any]
    encode_s: float
    encode_s_planned: dict[str, Any]
    first_token_s: float
    first_token_s_planned: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """A receipt, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        whole = self.layers_built == self.layers
        built = "" if whole else (
            f" ({self.layers_built} of {self.layers} layers were built, the rest is scaled)"
        )  # fmt: skip
        error = self.planned_bytes / self.peak_bytes - 1
        rows = [
            f"measured on {self.processor}, {self.device}{built}",
            f"{'':<16}{'planned':<24}measured",
            f"{'memory':<16}{f'{self.planned_bytes / GIB:.2f} GiB':<24}"
            f"{self.peak_bytes / GIB:.2f} GiB (the plan is {error:+.1%} off)",
        ]
        for name, planned, found in (
            ("tokens/s", self.tokens_per_s_planned, self.tokens_per_s),
            ("sees, s", self.encode_s_planned, self.encode_s),
            ("first token, s", self.first_token_s_planned, self.first_token_s),
        ):
            shown = "unknown"
            if planned["low"] is not None:
                shown = f"{planned['low']:.3g} to {planned['high']:.3g}"
            rows.append(f"{name:<16}{shown:<24}{found:.3g}")
        return "\n".join(rows)


def verify_plan(plan: Plan) -> Measured:
    """Measures a plan of ivl on this machine. ConfigError for a plan of another machine,
    UnsupportedError for another back end, CapacityError when not even one layer fits."""
    if plan.setting.backend.name != "ivl":
        raise UnsupportedError(
            f"{plan.setting.backend.name} cannot be measured from here.", "Use --backend ivl."
        )
    if not plan.machine.is_here:
        raise ConfigError("Another machine cannot be measured.", "Leave --device and --host out.")
    built = shortened(plan)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(measure_built, built).result()
    return _scaled(plan, built, found)


def shortened(plan: Plan) -> Plan:
    """The plan itself where it fits, else one with as many layers as do."""
    if plan.fits:
        return plan
    config = plan.subject.config
    for num_layers in range(config.decoder.num_layers - 1, 0, -1):
        decoder = replace(config.decoder, num_layers=num_layers)
        tensors = plan.subject.tensors
        if tensors is not None:
            tensors = tuple(t for t in tensors if _is_within(t, num_layers))
        subject = Subject(
            name=plan.subject.name, config=replace(config, decoder=decoder), tensors=tensors
        )
        smaller = make_plan(subject, plan.setting, plan.machine)
        if smaller.fits:
            return smaller
    raise CapacityError(
        "Not even one layer of the decoder fits beside the rest.",
        "Choose a smaller type, a smaller vision type or a smaller context.",
    )


def measure_built(plan: Plan) -> dict[str, float]:
    """Builds and runs the model in this process, which must have done nothing else."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts cards
    import torch

    from ivl.api import choose_dtype
    from ivl.kernels.threads import use_threads
    from ivl.model.build_random import PLAIN, random_planned_model
    from ivl.model.cpu_vision import use_arithmetic

    use_threads(None)
    where = _where(plan)
    on_gpu = where.vision.type == "cuda"
    device = torch.device("cuda" if on_gpu else "cpu")
    config, work = plan.subject.config, plan.setting.work
    is_quantized = any(tensor.format not in PLAIN for tensor in plan.tensors)
    dtype = choose_dtype(None, device, is_quantized=is_quantized)
    model = random_planned_model(config, plan.tensors, device=where, dtype=dtype)
    model.kv = work.kv
    # From here on as `ivl.api.load` does it, so that what is measured is what `ivl ask` runs.
    model.decoder.use_graphs(work.context)
    use_arithmetic(model, "auto")
    ids = torch.arange(plan.prompt_tokens, device=model.device) % config.decoder.vocab_size
    encode_s, features, tiles = 0.0, None, 0
    with torch.inference_mode():
        if work.num_tiles:
            tiles = min(work.vision_batch, work.num_tiles)
            px = config.tile_px
            pixels = torch.randint(0, 256, (tiles, px, px, 3), dtype=torch.uint8)
            encode_s, features = _timed(lambda: model.encode_tiles(pixels, tiles), device)
        places = torch.arange(len(ids), device=model.device)
        num_places = 0 if features is None else features.shape[0] * features.shape[1]
        x = model.embed(ids, places < num_places, features)
        cache = model.new_cache(work.context)
        prefill_s, _ = _timed(lambda: model.prefill(x, cache, chunk_tokens=CHUNK), device)
        steps = []
        for _ in range(min(TOKENS, work.context - cache.length)):
            steps.append(_timed(lambda: model.step(0, cache), device)[0])
        _touch(cache)
    return {
        "peak_bytes": sum(_peak_bytes(one) for one in _counted(plan, where)),
        "encode_s": encode_s,
        "tiles": tiles,
        "prefill_s": prefill_s,
        "step_s": statistics.median(steps) if steps else float("nan"),
        "is_gpu": device.type == "cuda",
    }


def _where(plan: Plan) -> DeviceMap:
    """The plan's placement on this machine's cards, in the order of their bus."""
    import torch

    from ivl.model.devices import DeviceMap, map_of

    num_layers = plan.subject.config.decoder.num_layers
    used = [share.device for share in plan.placement.shares if share.device.is_gpu]
    if not used or not torch.cuda.is_available():
        return DeviceMap.whole("cpu", num_layers)
    numbers = [i for i, slot in enumerate(plan.machine.gpus) if any(slot.device is d for d in used)]
    return map_of(
        plan.placement, [torch.device("cuda", number) for number in numbers], num_layers,
        vision_offload=plan.setting.tower_on_processor and not plan.machine.has_one_memory,
    )  # fmt: skip


def _counted(plan: Plan, where: DeviceMap) -> list[Any]:
    """The devices whose memory the plan counts."""
    import torch

    found = {where.vision, where.head, *where.layers} - {torch.device("cpu")}
    on_host = any(not share.device.is_gpu for share in plan.placement.shares)
    return [*sorted(found, key=str), *([torch.device("cpu")] if on_host or not found else [])]


def _scaled(plan: Plan, built: Plan, found: dict[str, float]) -> Measured:
    total = sum(share.total_bytes for share in plan.placement.shares)
    smaller = sum(share.total_bytes for share in built.placement.shares)
    layers, layers_built = (p.subject.config.decoder.num_layers for p in (plan, built))
    read = sum(plan.parts.layers) + plan.parts.head
    read_built = sum(built.parts.layers) + built.parts.head
    work = plan.setting.work
    encode_s = found["encode_s"] * work.num_tiles / found["tiles"] if found["tiles"] else 0.0
    first_s = encode_s + found["prefill_s"] * layers / layers_built
    return Measured(
        ivl=__version__,
        date=date.today().isoformat(),
        processor=processor_name(),
        system=platform.platform(),
        device="cuda" if found["is_gpu"] else "cpu",
        model=plan.subject.name,
        type="as stored" if plan.subject.is_on_disk else plan.setting.type,
        layers=layers,
        layers_built=layers_built,
        tiles_encoded=int(found["tiles"]),
        peak_bytes=int(found["peak_bytes"]) + total - smaller,
        planned_bytes=total,
        tokens_per_s=1 / (found["step_s"] * read / read_built),
        tokens_per_s_planned=_planned(plan.speed.tokens_per_s),
        encode_s=encode_s,
        encode_s_planned=_planned(plan.speed.encode_s),
        first_token_s=first_s,
        first_token_s_planned=_planned(plan.speed.first_token_s),
    )


def _planned(estimate: Estimate) -> dict[str, Any]:
    value = estimate.value
    found = {"low": None, "likely": None, "high": None} if value is None else asdict(value)
    return {**found, "confidence": estimate.confidence}


def _is_within(tensor: PlannedTensor, num_layers: int) -> bool:
    return tensor.part != "decoder" or tensor.layer is None or tensor.layer < num_layers


def _timed(run: Any, device: Any) -> tuple[float, Any]:
    import torch

    began = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


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
